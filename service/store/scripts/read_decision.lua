-- Read fields of a decision, in the round trip that others share.
-- KEYS: decision
-- ARGV: the fields
local found = redis.call('HMGET', KEYS[1], unpack(ARGV))
return found
