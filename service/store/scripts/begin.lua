-- Say at a loop's home that activity, or edges, come from now on, so that its workers read what is known of users.
-- KEYS: loop record
-- ARGV: channel, loop name, loop id, `activity` or `edges`
-- Returns 1, or 0 when there is no such loop.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 0
end
if redis.call('HGET', KEYS[1], ARGV[4]) ~= '1' then
  redis.call('HSET', KEYS[1], ARGV[4], 1)
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
  redis.call('PUBLISH', ARGV[1], ARGV[2])
end
return 1
