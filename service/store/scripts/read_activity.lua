-- Read the activity that is kept of one user, in the order in which it was accepted.
-- KEYS: activity
-- ARGV: none
local kept = redis.call('LRANGE', KEYS[1], 0, -1)
return kept
