-- Make a policy, whole, unless one of that name is there.
-- KEYS: loop record, policies, policy, log of changes
-- ARGV: channel, loop name, loop id, policy name, '1' to serve it alone if the loop has no traffic yet,
--       most entries of the log, its entry ('' = none), then (field, value) of the policy's record
-- Returns the new epoch, 'exists', or 'gone' when the loop is.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return 'exists'
end
redis.call('HSET', KEYS[3], unpack(ARGV, 8))
redis.call('SADD', KEYS[2], ARGV[4])
if ARGV[5] == '1' and redis.call('HGET', KEYS[1], 'traffic') == '{}' then
  redis.call('HSET', KEYS[1], 'traffic', cjson.encode({ [ARGV[4]] = 1 }))
end
if ARGV[7] ~= '' then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*', 'c', ARGV[7])
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
