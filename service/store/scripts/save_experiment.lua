-- Checkpoint an experiment: the moments of its arms, the sums of the units that changed, and the positions in the log up
-- to which, in one atomic write that only who began at the positions before can make. So every event counts once.
-- KEYS: loop record, sums, units
-- ARGV: loop id, positions that the writer began at ('' = none) / units erased by then, number of parts that follow for the sums, field and value of these,
--   then digest and sums of each unit
-- Returns 1, or 0 when somebody else has written meanwhile, or the loop is gone.
local began = (redis.call('HGET', KEYS[2], 'positions') or '') .. '/' .. (redis.call('HGET', KEYS[2], 'erased') or '0')
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or began ~= ARGV[2] then
  return 0
end
local last = 3 + ARGV[3]
redis.call('HSET', KEYS[2], unpack(ARGV, 4, last))
if #ARGV > last then
  redis.call('HSET', KEYS[3], unpack(ARGV, last + 1))
end
return 1
