-- Change the catalogue: all or nothing, one new version. The log keeps what was there before, so that any
-- version it still covers can be had back by undoing the later ones.
-- KEYS: loop record, items, item log, log of changes
-- ARGV: channel, loop name, loop id, most entries of the item log, '1' if what is deleted must be there,
--       most entries of the log of changes, its entry ('' = none), then (id, features as JSON or '' to delete) for each item
-- Returns the new epoch, 'gone' when the loop is, or 'missing' when an item to delete is not there.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
if ARGV[5] == '1' then
  for at = 8, #ARGV, 2 do
    if ARGV[at + 1] == '' and redis.call('HEXISTS', KEYS[2], ARGV[at]) == 0 then
      return 'missing'
    end
  end
end
local version = redis.call('HINCRBY', KEYS[1], 'catalogue', 1)
local before = {}
for at = 8, #ARGV, 2 do
  local was = redis.call('HGET', KEYS[2], ARGV[at]) or ''
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], string.format('%d-%d', version, (at - 6) / 2),
    'id', ARGV[at], 'now', ARGV[at + 1], 'was', was)
  before[#before + 1] = cjson.encode(ARGV[at]) .. ':' .. (was == '' and 'null' or was)
  if ARGV[at + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[at])
  else
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
end
if ARGV[7] ~= '' then
  local was = '{' .. table.concat(before, ',') .. '}'
  if #was > 4096 then
    was = cjson.encode({ left_out = #was .. ' bytes' })
  end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*', 'c', ARGV[7], 'before', was)
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
