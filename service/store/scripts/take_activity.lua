-- Take the activity of one user: leave out what came before, append it to what is kept and to the log, in one step.
-- KEYS: activity, activity users, stats, activity log, activity ids (one partition)
-- ARGV: user, his id as JSON, activities kept, time to live in ms, entries that the log keeps, ids kept, then (digest of
--   its id, 8 bytes, '' = none; when it was, in ms, '' = now; what it was) for each
-- Returns for each: accepted | duplicate
-- include accept
local ids = redis.call('GET', KEYS[5]) or ''

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
for i = 7, #ARGV, 3 do
  local id = ARGV[i]
  if known(id) then
    answers[#answers + 1] = 'duplicate'
  else
    ids = ids .. id
    new[#new + 1] = { tonumber(ARGV[i + 1]), ARGV[i + 2] }
    answers[#answers + 1] = 'accepted'
  end
end
redis.call('HINCRBY', KEYS[3], 'activity_duplicate', #answers - #new)
accept(new)
if #new > 0 and ids ~= '' then
  redis.call('SET', KEYS[5], string.sub(ids, -8 * ARGV[6]), 'PX', ARGV[4])
end
return answers
