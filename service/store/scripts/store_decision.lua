-- Store a decision before it is answered, and join what came before it. A repeated id changes nothing and gets the
-- stored record back. What a limit does not allow changes nothing, either; it is returned as a list.
-- KEYS: decision, pending, events, stats, early, early due, rewarded, shown, taken, capped users, budgets (one partition)
-- ARGV: decision id, record, wait time in ms, displayed (0 or 1), aggregation, ledger time in ms, the reward above
--   which an item counts as activity ('' = none does), limits ('' = none), then (item, e, x) for each item of the slate
-- include ledger
-- include open_time
-- include taken
-- include budget
-- include limits
local stored = redis.call('HGET', KEYS[1], 'record')
if stored then
  return stored
end
local now, n = open(), (#ARGV - 11) / 3
if limits then
  local found = limits.enforce and over(clock(), n) or {}
  if #found > 0 then
    count('overtaken')
    return found
  end
  count_slate(clock(), n)
end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'wait', ARGV[3], 'aggregation', ARGV[5], 'n', n)
for i = 0, n - 1 do
  local at = 9 + 3 * i
  redis.call('HSET', KEYS[1], 'item' .. i, ARGV[at], 'e' .. i, ARGV[at + 1], 'x' .. i, ARGV[at + 2])
end
if ARGV[4] == '1' then
  show(now, n, ARGV[3])
else
  local deadline = whole(now + ARGV[3])
  redis.call('HSET', KEYS[1], 'status', 'undisplayed', 'deadline', deadline)
  redis.call('ZADD', KEYS[2], deadline, ARGV[1])
end
count('decisions')

local early = redis.call('LRANGE', KEYS[5], 0, -1)
if #early == 0 then
  return false
end
redis.call('DEL', KEYS[5])
redis.call('ZREM', KEYS[6], ARGV[1])

local overtaken = {} -- key of a report -> the corrections of it that came before it
local function take(report)
  local at, item, reward, key, replaces = unpack(report, 2)
  if reward == '' then
    display(now)
  elseif replaces ~= '' and not known(replaces) then
    overtaken[replaces] = overtaken[replaces] or {}
    table.insert(overtaken[replaces], report)
  else
    join(item, reward, key, replaces, at, now, ARGV[5], ARGV[6], ARGV[7])
    local corrections = overtaken[key]
    if corrections and known(key) then
      overtaken[key] = nil
      for _, correction in ipairs(corrections) do
        take(correction)
      end
    end
  end
end
for _, kept in ipairs(early) do
  local report = cjson.decode(kept)
  if now > tonumber(report[1]) then
    count('unknown')
  else
    count('found')
    take(report)
    mark_early(report[3], report[4], clock(), n)
  end
end
for _, corrections in pairs(overtaken) do -- of what never came
  for _, correction in ipairs(corrections) do
    local at, item, reward, key, replaces = unpack(correction, 2)
    join(item, reward, key, replaces, at, now, ARGV[5], ARGV[6], ARGV[7])
  end
end
return false
