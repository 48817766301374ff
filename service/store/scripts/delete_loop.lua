-- Delete a loop's record: from here on the loop is gone. Its other keys are removed afterwards.
-- KEYS: loop record
-- ARGV: channel, loop name, loop id ('' = the record that the caller saw has none)
-- Returns 1, or 0 when there is no such loop.
if redis.call('EXISTS', KEYS[1]) == 0 or (redis.call('HGET', KEYS[1], 'id') or '') ~= ARGV[3] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
