-- Read what is counted of one user.
-- KEYS: shown, taken (one partition)
-- ARGV: ms after which what he took counts no more
-- Returns: the time in ms, his impressions as item, `ms ms ...` in turn, and the items that he took
local function whole(number)
  return string.format('%d', number)
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local after = '(' .. whole(now - ARGV[1])
return { whole(now), redis.call('HGETALL', KEYS[1]), redis.call('ZRANGEBYSCORE', KEYS[2], after, '+inf') }
