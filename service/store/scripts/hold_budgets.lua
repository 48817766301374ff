-- Take up what was granted to a partition, give back what it does not use, and say what it holds.
-- KEYS: budgets
-- ARGV: ms after which what is not used goes back, then (per, item, period, granted, how much is called back) for each;
--   period '' = nothing is told
-- Returns for each: period, granted, returned, used
-- include budget
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for i = 2, #ARGV, 5 do
  local per, field = ARGV[i], ARGV[i] .. '/' .. ARGV[i + 1]
  local stored = redis.call('HGET', KEYS[1], field)
  local held = read_budget(stored, period_of(per, now))
  if tonumber(ARGV[i + 2]) == held.period then
    if tonumber(ARGV[i + 3]) > held.granted then
      held.granted, held.last = tonumber(ARGV[i + 3]), now
    end
    held.returned = held.returned + math.max(0, math.min(left_of(held), tonumber(ARGV[i + 4])))
  elseif now - held.last > tonumber(ARGV[1]) then
    held.returned = held.returned + left_of(held)
  end
  local text = budget_text(held)
  if held.granted > 0 and text ~= stored then
    redis.call('HSET', KEYS[1], field, text)
  end
  for _, number in ipairs({ held.period, held.granted, held.returned, held.used }) do
    answer[#answer + 1] = number
  end
end
return answer
