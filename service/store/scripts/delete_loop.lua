-- Delete a loop's record: from here on the loop is gone. Its other keys are removed afterwards.
-- KEYS: loop record
-- ARGV: channel, loop name, loop id ('' = the record that the caller saw has none)
-- Returns 1, or 0 when there is no such loop.
local is_hash = redis.call('TYPE', KEYS[1]).ok == 'hash'
if redis.call('EXISTS', KEYS[1]) == 0 or (is_hash and redis.call('HGET', KEYS[1], 'id') or '') ~= ARGV[3] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
