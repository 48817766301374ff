-- The limits of a loop (`service/limits.py`), checked and counted when a decision is stored.
-- KEYS[7] on: shown, taken, capped users, budgets (one partition)
-- ARGV[7]: '' = none, or JSON: enforce; user, kept, ms, impressions ([most, ms] each), above; budgets (item -> per).
--   What does not apply is left out.
local limits = ARGV[7] ~= '' and cjson.decode(ARGV[7])

local function slate_item(i)
  return ARGV[8 + 3 * i]
end

-- Return item -> times of its impressions for the user, of a slate of n.
local function impressions(n)
  local times = {}
  for i = 0, n - 1 do
    times[slate_item(i)] = {}
  end
  for _, one in ipairs(redis.call('LRANGE', KEYS[7], 0, -1)) do
    local at, item = string.match(one, '^(%d+) (.*)$')
    if times[item] then
      table.insert(times[item], tonumber(at))
    end
  end
  return times
end

local function is_capped(times, now)
  for _, cap in ipairs(limits.impressions) do
    local count = 0
    for _, at in ipairs(times) do
      if at > now - cap[2] then
        count = count + 1
      end
    end
    if count >= cap[1] then
      return true
    end
  end
  return false
end

local function budget_here(item, per, now)
  return read_budget(redis.call('HGET', KEYS[10], per .. '/' .. item), period_of(per, now))
end

-- Return what is not allowed, of a slate of n: `shown` or `spent`, and the item, in turn.
local function over(now, n)
  local found, times = {}, limits.impressions and impressions(n)
  for i = 0, n - 1 do
    local item = slate_item(i)
    local per = limits.budgets and limits.budgets[item]
    if times and is_capped(times[item], now) then
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
      redis.call('RPUSH', KEYS[7], whole(now) .. ' ' .. item)
    end
    if per then
      local held = budget_here(item, per, now)
      held.used, held.last = held.used + 1, now
      redis.call('HSET', KEYS[10], per .. '/' .. item, budget_text(held))
    end
  end
  if limits.impressions then
    redis.call('LTRIM', KEYS[7], -limits.kept, -1)
    redis.call('PEXPIRE', KEYS[7], whole(limits.ms))
    counted(9, limits.user, now, limits.ms)
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
        mark(8, slate_item(i), now, limits.kept, whole(limits.ms))
        counted(9, limits.user, now, limits.ms)
      end
    end
  end
end
