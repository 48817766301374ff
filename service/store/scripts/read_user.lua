-- Read what is known of one user: the activity that is kept, in the order in which it was accepted, and the fields of his
-- neighbourhood.
-- KEYS: activity, graph (one partition)
-- ARGV: none
-- Returns both; false where there are no fields.
local kept = redis.call('LRANGE', KEYS[1], 0, -1)
return {kept, redis.call('GET', KEYS[2])}
