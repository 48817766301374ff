-- The wait for a decision's feedback is over: every item without an event gets one.
-- KEYS: decision, pending, events, stats
-- ARGV: decision id, default reward, lowest reward, highest reward, ledger time in ms
-- Returns the number of events appended; 0 when it is not due yet or was settled already.
local head = redis.call('HMGET', KEYS[1], 'status', 'deadline', 'n', 'place')
if not head[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now <= tonumber(head[2]) or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return 0
end
local appended = 0
for i = 0, tonumber(head[3]) - 1 do
  if redis.call('HEXISTS', KEYS[1], 'done' .. i) == 0 then
    local e = redis.call('HMGET', KEYS[1], 'e' .. i, 'x' .. i, 'r' .. i)
    local reward, source = ARGV[2], 'default'
    if e[3] then
      reward, source = e[3], 'feedback'
      if tonumber(reward) < tonumber(ARGV[3]) then reward = ARGV[3] end
      if tonumber(reward) > tonumber(ARGV[4]) then reward = ARGV[4] end
    else
      redis.call('HINCRBY', KEYS[4], 'defaulted', 1)
    end
    local place = head[4] and string.format('%d', head[4] + i) or '' -- decisions of older versions have none
    redis.call('XADD', KEYS[3], '*', 'e', e[1], 'x', e[2], 'o', place, 'r', reward, 's', source)
    redis.call('HSET', KEYS[1], 'done' .. i, 1)
    appended = appended + 1
  end
end
if head[1] == 'pending' then
  redis.call('HSET', KEYS[1], 'status', 'defaulted')
end
redis.call('HINCRBY', KEYS[4], 'events', appended)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return appended
