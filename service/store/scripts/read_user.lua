-- Read what is known of one user: the activity that is kept, in the order in which it was accepted, where the log of
-- activity ends (what is read is all of him up to there), and the fields of his neighbourhood.
-- KEYS: activity, activity log, graph (one partition)
-- ARGV: none
-- Returns what is kept, the position of the newest entry of the log, '0-0' where there is none, and the fields, false
-- where there are none.
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
return { redis.call('LRANGE', KEYS[1], 0, -1), newest and newest[1] or '0-0', redis.call('GET', KEYS[3]) }
