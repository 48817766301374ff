-- Pin a policy's version, if it is kept and the loop is still as the caller saw it. A pinned version is never dropped.
-- KEYS: loop record, snapshots of the policy, log of changes
-- ARGV: channel, loop name, loop id, epoch that the caller saw, version, the loop's new pins,
--       most entries of the log, its entry ('' = none)
-- Returns the new epoch, 'stale', 'gone', or 'missing' when the version is not kept.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[4] then
  return 'stale'
end
if redis.call('HEXISTS', KEYS[2], ARGV[5]) == 0 then
  return 'missing'
end
redis.call('HSET', KEYS[1], 'pins', ARGV[6])
if ARGV[8] ~= '' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'c', ARGV[8])
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
