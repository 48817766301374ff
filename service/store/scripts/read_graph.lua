-- Read the fields of one user's neighbourhood.
-- KEYS: graph
-- ARGV: none
local fields = redis.call('GET', KEYS[1])
return fields
