-- Grant a partition portions of budgets: it is to hold a half of what is left, shared among all partitions. Near the
-- end portions are as small as one impression.
-- KEYS: granted (the home's)
-- ARGV: partition, partitions, whether it is asked for items (0 or 1), then (per, item, impressions, period, granted,
--   returned, used), as it says, for each
-- Returns for each: period, granted, how much is called back
-- include budget
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local partitions, answer = tonumber(ARGV[2]), {}

local function read(partition, name, period)
  return read_budget(redis.call('HGET', KEYS[1], partition .. '/' .. name), period)
end

for i = 4, #ARGV, 7 do
  local name, most, period = ARGV[i] .. '/' .. ARGV[i + 1], tonumber(ARGV[i + 2]), period_of(ARGV[i], now)
  local mine, free = read(ARGV[1], name, period), most
  local before, back = budget_text(mine), 0
  if tonumber(ARGV[i + 3]) == period then
    local granted, returned, used = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6])
    local knows = granted >= mine.granted -- else a portion is still on its way
    mine.granted, mine.returned = math.max(mine.granted, granted), math.max(mine.returned, returned)
    for partition = 0, partitions - 1 do
      local other = tostring(partition) == ARGV[1] and mine or read(partition, name, period)
      free = free - (other.granted - other.returned)
    end
    local left = granted - returned - used
    if free < 0 then -- the budget is smaller than it was
      back = math.min(left, -free)
    elseif knows and ARGV[3] == '1' then
      local portion = math.min(free, math.ceil((free + left) / (2 * partitions)) - left)
      mine.granted = mine.granted + math.max(0, portion)
    end
    if budget_text(mine) ~= before then
      mine.last = now
      redis.call('HSET', KEYS[1], ARGV[1] .. '/' .. name, budget_text(mine))
    end
  end
  for _, number in ipairs({ period, mine.granted, back }) do
    answer[#answer + 1] = number
  end
end
return answer
