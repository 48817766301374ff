-- Say that an API worker is alive, and forget those that have not been heard of for a minute.
-- KEYS: workers
-- ARGV: worker
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - 60))
