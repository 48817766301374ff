-- Delete a policy with all that it has, if the loop is still as the caller saw it.
-- KEYS: loop record, policies, log of changes, then every key of the policy
-- ARGV: channel, loop name, loop id, epoch that the caller saw, policy name, the loop's new pins,
--       most entries of the log, its entry ('' = none)
-- Returns the new epoch, 'stale', or 'gone'.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[4] then
  return 'stale'
end
redis.call('SREM', KEYS[2], ARGV[5])
for at = 4, #KEYS do
  redis.call('UNLINK', KEYS[at])
end
redis.call('HSET', KEYS[1], 'pins', ARGV[6])
if ARGV[8] ~= '' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'c', ARGV[8])
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
