-- Change the catalogue: all or nothing, one new version. The log keeps what was there before, so that any
-- version it still covers can be had back by undoing the later ones.
-- KEYS: items, item log, loop
-- ARGV: most entries of the log, then (id, features as JSON or '' to delete) for each item
-- Returns the catalogue's version.
local version = redis.call('HINCRBY', KEYS[3], 'catalogue', 1)
for at = 2, #ARGV, 2 do
  local was = redis.call('HGET', KEYS[1], ARGV[at]) or ''
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], string.format('%d-%d', version, at / 2),
    'id', ARGV[at], 'now', ARGV[at + 1], 'was', was)
  if ARGV[at + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[at])
  else
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  end
end
redis.call('HINCRBY', KEYS[3], 'epoch', 1)
return version
