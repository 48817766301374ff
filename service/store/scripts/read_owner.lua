-- Read whose decision it is, where caps ask for it, and its first item.
-- KEYS: decision
-- ARGV: none
local found = redis.call('HMGET', KEYS[1], 'user', 'item0')
return found
