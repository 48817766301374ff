-- Take the activity of one user: leave out what came before, append, trim, put off the end of its time.
-- KEYS: activity, activity ids, activity users, stats, acted (one partition)
-- ARGV: user, activities kept, time to live in ms, ids kept, whether the loop has edges, then (digest of its id, 8 bytes,
--   '' = none; when it was, in ms, '' = now; what it was) for each
-- Returns for each: accepted | duplicate
local function whole(number)
  return string.format('%d', number)
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = redis.call('GET', KEYS[2]) or ''
local last = redis.call('LINDEX', KEYS[1], -1)
local number = last and tonumber(string.match(last, '^%d+')) or 0

local function known(id)
  local from = 1
  while id ~= '' do
    local found = string.find(ids, id, from, true)
    if not found then
      return false
    elseif found % 8 == 1 then
      return true
    end
    from = found + 1
  end
  return false
end

local answers, accepted = {}, 0
for i = 6, #ARGV, 3 do
  local id, at = ARGV[i], tonumber(ARGV[i + 1]) or now
  if known(id) then
    answers[#answers + 1] = 'duplicate'
  else
    accepted, number, ids = accepted + 1, number + 1, ids .. id
    redis.call('RPUSH', KEYS[1], whole(number) .. ' ' .. whole(math.min(at, now)) .. ' ' .. ARGV[i + 2])
    answers[#answers + 1] = 'accepted'
  end
end
redis.call('HINCRBY', KEYS[4], 'activity_duplicate', #answers - accepted)
if accepted > 0 then
  redis.call('HINCRBY', KEYS[4], 'activity', accepted)
  redis.call('LTRIM', KEYS[1], -ARGV[2], -1)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  if ids ~= '' then
    redis.call('SET', KEYS[2], string.sub(ids, -8 * ARGV[4]), 'PX', ARGV[3])
  end
  redis.call('ZADD', KEYS[3], whole(now + ARGV[3]), ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
  if ARGV[5] == '1' then
    redis.call('ZADD', KEYS[5], redis.call('HINCRBY', KEYS[4], 'graph_marks', 1), ARGV[1])
  end
end
return answers
