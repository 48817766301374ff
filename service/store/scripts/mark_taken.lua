-- A user took an item.
-- KEYS: taken, capped users (one partition)
-- ARGV: user, item, items kept, ms for which they are
local function whole(number)
  return string.format('%d', number)
end

-- include taken
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
mark(1, ARGV[2], now, tonumber(ARGV[3]), ARGV[4])
counted(2, ARGV[1], now, tonumber(ARGV[4]))
return 1
