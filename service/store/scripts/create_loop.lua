-- Make a loop, whole, unless one of that name is there.
-- KEYS: loop record, log of changes
-- ARGV: channel, loop name, most entries of the log, its entry ('' = none), then (field, value) of the record
-- Returns 1, or 0 when the name is taken.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if ARGV[4] ~= '' then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'c', ARGV[4])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
