-- Change fields of an evaluation that has not ended.
-- KEYS: evaluation
-- ARGV: field, value, ...
-- Returns 1, or 0 when it has ended or is not there.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'waiting' and status ~= 'running' then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
