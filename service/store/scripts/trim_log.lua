-- Drop the oldest entries of the log with their dead letters, and count them, unless somebody else just did.
-- KEYS: events, stats, dead letters
-- ARGV: position of the oldest entry that the caller saw, position of the first entry to keep,
--       number of events among those that go, then the position of each dead letter that goes
-- Returns 1, or 0 when the oldest entry is another one by now.
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not oldest or oldest[1] ~= ARGV[1] then
  return 0
end
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
redis.call('HINCRBY', KEYS[2], 'trimmed', ARGV[3])
for at = 4, #ARGV do
  redis.call('HDEL', KEYS[3], ARGV[at])
end
return 1
