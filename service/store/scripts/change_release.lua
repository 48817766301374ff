-- Write a release down, with the change of its loop that belongs to it: both, or neither.
-- KEYS: loop record, log of changes, release
-- ARGV: channel, loop name, loop id, epoch that the caller saw ('' = the loop stays as it is), revision of the release
--       that the caller saw ('0' = none), most entries of the log, its entry, number of fields of the loop,
--       then (field, value) of these, then (field, value) of the release
-- Returns the loop's epoch, 'stale' when somebody else changed the loop or the release meanwhile, or 'gone'.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if (ARGV[4] ~= '' and epoch ~= ARGV[4]) or (redis.call('HGET', KEYS[3], 'revision') or '0') ~= ARGV[5] then
  return 'stale'
end
local fields = 8 + 2 * tonumber(ARGV[8])
redis.call('HSET', KEYS[3], unpack(ARGV, fields + 1))
redis.call('HINCRBY', KEYS[3], 'revision', 1)
if ARGV[4] == '' then
  return tonumber(epoch)
end
redis.call('HSET', KEYS[1], unpack(ARGV, 9, fields))
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'c', ARGV[7])
epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
