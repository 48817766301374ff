-- Remove the sums of a unit of an experiment. Who reads the log just now began before it, and will not write: what he
-- read may hold the unit's events.
-- KEYS: loop record, sums, units
-- ARGV: loop id, digest of the unit
-- Returns 1, or 0 when the loop is gone.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then
  return 0
end
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('HINCRBY', KEYS[2], 'erased', 1)
return 1
