-- The wait for a decision's feedback is over: every item without an event gets one, if it was displayed.
-- KEYS: decision, pending, events, stats, early, early due, rewarded (one partition)
-- ARGV: decision id, open time in ms, default reward, lowest reward, highest reward, aggregation, ledger time in ms
-- Returns the number of events appended; 0 when it is not due yet or was settled already.
-- include ledger
local head = redis.call('HMGET', KEYS[1], 'status', 'deadline', 'n', 'seen', 'aggregation')
if not head[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
if tonumber(ARGV[2]) <= tonumber(head[2]) or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return 0
end

-- The reports that count, in their turns, become one reward an item.
local turns, seen, aggregation = {}, tonumber(head[4] or 0), head[5] or ARGV[6]
for number = 0, seen - 1 do
  local report = cjson.decode(redis.call('HGET', KEYS[1], 'feedback' .. number))
  if report[4] == 'accepted' then
    turns[report[6] or number] = report
  end
end
local rewards = {}
for turn = 0, seen - 1 do
  if turns[turn] then
    local i, reward = turns[turn][1], turns[turn][2]
    local before = rewards[i]
    if before and aggregation == 'sum' then
      reward = string.format('%.17g', tonumber(before) + tonumber(reward))
    elseif before and aggregation == 'max' and tonumber(before) > tonumber(reward) then
      reward = before
    end
    rewards[i] = reward
  end
end

local appended = 0
if head[1] == 'undisplayed' then
  count('undisplayed')
else
  for i = 0, tonumber(head[3]) - 1 do
    if redis.call('HEXISTS', KEYS[1], 'done' .. i) == 0 then
      local reward = rewards[i]
      if not reward then
        append(i, ARGV[3], 'default')
        count('defaulted')
      elseif tonumber(reward) < tonumber(ARGV[4]) then
        append(i, ARGV[4], 'feedback')
      elseif tonumber(reward) > tonumber(ARGV[5]) then
        append(i, ARGV[5], 'feedback')
      else
        append(i, reward, 'feedback')
      end
      appended = appended + 1
    end
  end
end
if head[1] == 'pending' then
  redis.call('HSET', KEYS[1], 'status', 'defaulted')
end
redis.call('HSET', KEYS[1], 'settled', 1)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
return appended
