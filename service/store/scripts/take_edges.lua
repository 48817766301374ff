-- Take edges of one user: write what is new or has changed, and drop the lightest beyond the bound, of these the oldest.
-- What changed waits for its second step: reverse entries, at those whom the edges name (`store/edges.py`).
-- KEYS: edges, edges pending, stats (one partition)
-- ARGV: user, edges kept, then (digest of whom and of what kind, weight, when it was, in ms, '' = now, whom and kind) for
--   each
-- Returns for each: accepted | duplicate | full
local function whole(number)
  return string.format('%d', number)
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held, fields = {}, {}
local stored = redis.call('HGETALL', KEYS[1])
for at = 1, #stored, 2 do
  local weight, moment = string.match(stored[at + 1], '^(%S+) (%S+) ')
  held[stored[at]] = {weight = tonumber(weight), at = tonumber(moment), stored = true}
  fields[#fields + 1] = stored[at]
end

local answers, named, values = {}, {}, {}
for i = 3, #ARGV, 4 do
  local field, weight, given = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local was, at = held[field], math.min(given or now, now)
  named[#named + 1] = field
  if was and (given and at < was.at or was.weight == weight and (not given or at == was.at)) then
    answers[#answers + 1] = 'duplicate'
  else
    if not was then
      fields[#fields + 1] = field
    end
    held[field] = {weight = weight, at = at, stored = was and was.stored}
    values[field] = ARGV[i + 1] .. ' ' .. whole(at) .. ' ' .. ARGV[i + 3]
    answers[#answers + 1] = 'accepted'
  end
end

table.sort(fields, function(one, other)
  local a, b = held[one], held[other]
  if a.weight ~= b.weight then
    return a.weight > b.weight
  elseif a.at ~= b.at then
    return a.at > b.at
  end
  return one < other
end)
local changed, full, gone = false, 0, {}
for place = tonumber(ARGV[2]) + 1, #fields do
  local field = fields[place]
  gone[field] = true
  if held[field].stored then
    redis.call('HDEL', KEYS[1], field)
    changed = true
  end
end
for field, value in pairs(values) do
  if not gone[field] then
    redis.call('HSET', KEYS[1], field, value)
    changed = true
  end
end
for place, field in ipairs(named) do
  if gone[field] and answers[place] == 'accepted' then
    answers[place], full = 'full', full + 1
  end
end
redis.call('HINCRBY', KEYS[3], 'edges_refused', full)
if changed then
  local before, after = #stored / 2, redis.call('HLEN', KEYS[1])
  redis.call('HINCRBY', KEYS[3], 'edges', after - before)
  if before == 0 then
    redis.call('HINCRBY', KEYS[3], 'edge_users', 1)
  end
  redis.call('ZADD', KEYS[2], redis.call('HINCRBY', KEYS[3], 'edge_changes', 1), ARGV[1])
end
return answers
