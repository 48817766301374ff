-- What the scripts share that accept activity of a user: it is appended to what is kept of him, and to the log.
-- KEYS: activity, activity users, stats, activity log (one partition)
-- ARGV: user, his id as JSON, activities kept, time to live in ms, entries that the log keeps
local function whole(number)
  return string.format('%d', number)
end

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Accept activities, each (when it was, in ms, nil = now; what it was), in this order.
local function accept(activities)
  if #activities == 0 then
    return
  end
  local now = clock()
  local last = redis.call('LINDEX', KEYS[1], -1)
  local number = last and tonumber(string.match(last, '^%d+')) or 0
  for _, one in ipairs(activities) do
    number = number + 1
    local entry = whole(number) .. ' ' .. whole(math.min(one[1] or now, now)) .. ' ' .. one[2]
    redis.call('RPUSH', KEYS[1], entry)
    redis.call('XADD', KEYS[4], '*', 'u', ARGV[2], 'a', entry, 'k', ARGV[4])
  end
  redis.call('LTRIM', KEYS[1], -ARGV[3], -1)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('ZADD', KEYS[2], whole(now + ARGV[4]), ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(now))
  redis.call('HINCRBY', KEYS[3], 'activity', #activities)
  redis.call('HINCRBY', KEYS[3], 'activity_logged', #activities)
  local trimmed = redis.call('XTRIM', KEYS[4], 'MAXLEN', '~', ARGV[5])
  if trimmed > 0 then
    redis.call('HINCRBY', KEYS[3], 'activity_trimmed', trimmed)
  end
end
