-- Give up the reports whose time to wait for this decision is over.
-- KEYS: decision, pending, events, stats, early, early due, rewarded (one partition)
-- ARGV: decision id, open time in ms
-- Returns how many.
-- include ledger
local now, given_up = tonumber(ARGV[2]), 0
local kept = redis.call('LINDEX', KEYS[5], 0)
while kept and now > tonumber(cjson.decode(kept)[1]) do
  redis.call('LPOP', KEYS[5])
  count('unknown')
  given_up = given_up + 1
  kept = redis.call('LINDEX', KEYS[5], 0)
end
if kept then
  redis.call('ZADD', KEYS[6], cjson.decode(kept)[1], ARGV[1])
else
  redis.call('ZREM', KEYS[6], ARGV[1])
end
return given_up
