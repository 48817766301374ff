-- Change a loop's record, if it is still as the caller saw it.
-- KEYS: loop record, log of changes
-- ARGV: channel, loop name, loop id, epoch that the caller saw, most entries of the log, its entry ('' = none),
--       then (field, value) of what changes
-- Returns the new epoch, 'stale' when somebody else changed it meanwhile, or 'gone'.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[4] then
  return 'stale'
end
if #ARGV > 6 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 7))
end
if ARGV[6] ~= '' then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'c', ARGV[6])
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
