-- Make a loop, whole, unless one of that name is there.
-- KEYS: loop record
-- ARGV: channel, loop name, then (field, value) of the record
-- Returns 1, or 0 when the name is taken.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
