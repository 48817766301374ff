-- The limits of a loop (`service/limits.py`), checked and counted when a decision is stored.
-- KEYS[8] on: shown, taken, capped users, budgets (one partition)
-- ARGV[8]: '' = none, or JSON: enforce; user, kept, ms, impressions ([most, ms] each), above; budgets (item -> per).
--   What does not apply is left out.
local limits = ARGV[8] ~= '' and cjson.decode(ARGV[8])

local function slate_item(i)
  return ARGV[9 + 3 * i]
end

-- Return whether impressions at these times, `ms ms ...` with the newest last, are as many as may be.
local function is_capped(times, now)
  local newest = {}
  for at in string.gmatch(times, '%d+') do
    table.insert(newest, 1, tonumber(at))
  end
  for _, cap in ipairs(limits.impressions) do
    local nth = newest[cap[1]]
    if nth and nth > now - cap[2] then
      return true
    end
  end
  return false
end

-- Note an impression. Of an item as many are kept as a cap can ask for, of the user so many items: when there are more,
-- a quarter of them goes, those whose newest is oldest.
local function note_impression(item, now)
  local most = 1
  for _, cap in ipairs(limits.impressions) do
    most = math.max(most, cap[1])
  end
  local times = (redis.call('HGET', KEYS[8], item) or '') .. ' ' .. whole(now)
  redis.call('HSET', KEYS[8], item, string.sub(times, -14 * most))
  if redis.call('HLEN', KEYS[8]) > limits.kept then
    local found, all = {}, redis.call('HGETALL', KEYS[8])
    for i = 1, #all, 2 do
      found[#found + 1] = { all[i], tonumber(string.match(all[i + 1], '%d+$')) }
    end
    table.sort(found, function(one, other) return one[2] < other[2] end)
    for i = 1, math.ceil(limits.kept / 4) do
      redis.call('HDEL', KEYS[8], found[i][1])
    end
  end
end

local function budget_here(item, per, now)
  return read_budget(redis.call('HGET', KEYS[11], per .. '/' .. item), period_of(per, now))
end

-- Return what is not allowed, of a slate of n: `shown` or `spent`, and the item, in turn.
local function over(now, n)
  local found = {}
  for i = 0, n - 1 do
    local item = slate_item(i)
    local per = limits.budgets and limits.budgets[item]
    if limits.impressions and is_capped(redis.call('HGET', KEYS[8], item) or '', now) then
      found[#found + 1] = 'shown'
      found[#found + 1] = item
    elseif per and left_of(budget_here(item, per, now)) <= 0 then
      found[#found + 1] = 'spent'
      found[#found + 1] = item
    end
  end
  return found
end

-- Count a slate of n.
local function count_slate(now, n)
  for i = 0, n - 1 do
    local item = slate_item(i)
    local per = limits.budgets and limits.budgets[item]
    if limits.impressions then
      note_impression(item, now)
    end
    if per then
      local held = budget_here(item, per, now)
      held.used, held.last = held.used + 1, now
      redis.call('HSET', KEYS[11], per .. '/' .. item, budget_text(held))
    end
  end
  if limits.impressions then
    redis.call('PEXPIRE', KEYS[8], whole(limits.ms))
    counted(10, limits.user, now, limits.ms)
  end
  if limits.above then
    redis.call('HSET', KEYS[1], 'user', limits.user)
  end
end

-- A report came before the decision: mark what the user took by it.
local function mark_early(item, reward, now, n)
  if limits and limits.above and reward ~= '' and tonumber(reward) > limits.above then
    for i = 0, n - 1 do
      if slate_item(i) == item or (item == '' and i == 0) then
        mark(9, slate_item(i), now, limits.kept, whole(limits.ms))
        counted(10, limits.user, now, limits.ms)
      end
    end
  end
end
