-- Say that an API worker is alive, and forget those that have not been heard of for a minute. Where no worker had
-- reached Redis for longer than the limit, feedback could not be taken: that time is added to what deadlines stand still.
-- KEYS: workers, open time, outages (one tag)
-- ARGV: worker, limit in ms
-- Returns for how long deadlines have stood still, ever, and the time of this heartbeat; both in ms.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - 60))
local last = redis.call('HGET', KEYS[2], 'beat')
if last and ms - last > tonumber(ARGV[2]) then
  redis.call('HINCRBY', KEYS[2], 'closed', ms - last)
  redis.call('HINCRBY', KEYS[2], 'outages', 1)
  redis.call('LPUSH', KEYS[3], string.format('%s %d', last, ms))
  redis.call('LTRIM', KEYS[3], 0, 99)
end
redis.call('HSET', KEYS[2], 'beat', string.format('%d', ms))
return { tonumber(redis.call('HGET', KEYS[2], 'closed') or 0), ms }
