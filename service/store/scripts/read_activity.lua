-- Read the activity that is kept of one user, in the order in which it was accepted, and where the log of activity ends:
-- what is read is all of him up to there.
-- KEYS: activity, activity log (one partition)
-- ARGV: none
-- Returns what is kept, and the position of the newest entry of the log, '0-0' where there is none.
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
return { redis.call('LRANGE', KEYS[1], 0, -1), newest and newest[1] or '0-0' }
