-- Delete a loop's record: from here on the loop is gone. Its other keys are removed afterwards.
-- KEYS: loop record
-- ARGV: channel, loop name, loop id ('' = whatever is there)
-- Returns 1, or 0 when there is no such loop.
if redis.call('EXISTS', KEYS[1]) == 0 or (ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'id') ~= ARGV[3]) then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
