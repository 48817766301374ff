-- An item's budget as a partition holds it: `period granted returned used last`. The period is the day, or 0 for a
-- budget in total; `last` says when it was used or granted. The others count impressions since the period began, and
-- only rise, so what is told twice changes nothing.
local function period_of(per, now)
  return per == 'day' and math.floor(now / 86400000) or 0
end

local function read_budget(stored, period)
  local held = { period = period, granted = 0, returned = 0, used = 0, last = 0 }
  local since, granted, returned, used, last = string.match(stored or '', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if tonumber(since) == period then
    held.granted, held.returned, held.used = tonumber(granted), tonumber(returned), tonumber(used)
    held.last = tonumber(last)
  end
  return held
end

local function left_of(held)
  return held.granted - held.returned - held.used
end

local function budget_text(held)
  return string.format('%d %d %d %d %d', held.period, held.granted, held.returned, held.used, held.last)
end
