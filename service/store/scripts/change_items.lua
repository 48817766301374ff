-- Change the catalogue: all or nothing, one new version. The log keeps what was there before, so that any
-- version it still covers can be had back by undoing the later ones.
-- KEYS: loop record, items, item log
-- ARGV: channel, loop name, loop id, most entries of the log, '1' if what is deleted must be there,
--       then (id, features as JSON or '' to delete) for each item
-- Returns the new epoch, 'gone' when the loop is, or 'missing' when an item to delete is not there.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
if ARGV[5] == '1' then
  for at = 6, #ARGV, 2 do
    if ARGV[at + 1] == '' and redis.call('HEXISTS', KEYS[2], ARGV[at]) == 0 then
      return 'missing'
    end
  end
end
local version = redis.call('HINCRBY', KEYS[1], 'catalogue', 1)
for at = 6, #ARGV, 2 do
  local was = redis.call('HGET', KEYS[2], ARGV[at]) or ''
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], string.format('%d-%d', version, (at - 4) / 2),
    'id', ARGV[at], 'now', ARGV[at + 1], 'was', was)
  if ARGV[at + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[at])
  else
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
