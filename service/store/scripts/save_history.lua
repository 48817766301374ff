-- Checkpoint a loop's history: bins, and the position in the log up to which they count, in one atomic write that only
-- who began at the position before can make. So every event counts once, whoever counts.
-- KEYS: loop record, bins
-- ARGV: loop id, position that the writer began at, format, position, number of bins that go, their names, then name and
--   content of each bin that changed
-- Returns 1, or 0 when somebody else has written meanwhile, or the loop is gone.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or (redis.call('HGET', KEYS[2], 'position') or '0-0') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[2], 'v', ARGV[3], 'position', ARGV[4])
local going = tonumber(ARGV[5])
for at = 6 + going, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
end
for at = 6, 5 + going do
  redis.call('HDEL', KEYS[2], ARGV[at])
end
return 1
