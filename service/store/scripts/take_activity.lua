-- Take the activity of one user: leave out what came before, append it to what is kept and to the log, in one step.
-- KEYS: activity, activity users, stats, activity log, activity ids, taken, capped users, acted (one partition)
-- ARGV: user, his id as JSON, activities kept, time to live in ms, entries that the log keeps, ids kept, items taken
--   kept, ms for which they are, whether the loop has edges, then (digest of its id, 8 bytes, '' = none; when it was, in
--   ms, '' = now; what it was; the item, if he took it, else '') for each
-- Returns for each: accepted | duplicate
-- include accept
-- include taken
local ids, now = redis.call('GET', KEYS[5]) or '', clock()

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

local answers, new = {}, {}
for i = 10, #ARGV, 4 do
  local id, at = ARGV[i], tonumber(ARGV[i + 1])
  if known(id) then
    answers[#answers + 1] = 'duplicate'
  else
    ids = ids .. id
    new[#new + 1] = { at, ARGV[i + 2] }
    if ARGV[i + 3] ~= '' then
      mark(6, ARGV[i + 3], math.min(at or now, now), tonumber(ARGV[7]), ARGV[8])
      counted(7, ARGV[1], now, tonumber(ARGV[8]))
    end
    answers[#answers + 1] = 'accepted'
  end
end
redis.call('HINCRBY', KEYS[3], 'activity_duplicate', #answers - #new)
accept(new)
if #new > 0 then
  if ids ~= '' then
    redis.call('SET', KEYS[5], string.sub(ids, -8 * ARGV[6]), 'PX', ARGV[4])
  end
  if ARGV[9] == '1' then
    redis.call('ZADD', KEYS[8], redis.call('HINCRBY', KEYS[3], 'graph_marks', 1), ARGV[1])
  end
end
return answers
