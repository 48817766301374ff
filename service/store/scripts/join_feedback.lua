-- Join one feedback to its decision: idempotent, atomic, one round trip.
-- KEYS: decision, pending, events, stats
-- ARGV: decision id, item ('' = the first), reward, feedback id ('' = none), aggregation, ledger time in ms
-- Returns: accepted | duplicate | late | unknown | not_in_slate | too_many
local head = redis.call('HMGET', KEYS[1], 'status', 'deadline', 'n', 'seen')
if not head[1] then
  redis.call('HINCRBY', KEYS[4], 'rejected', 1)
  return 'unknown'
end
local status, deadline, n, seen = head[1], tonumber(head[2]), tonumber(head[3]), tonumber(head[4] or 0)

local i = 0
if ARGV[2] ~= '' then
  while i < n and redis.call('HGET', KEYS[1], 'item' .. i) ~= ARGV[2] do
    i = i + 1
  end
  if i == n then
    redis.call('HINCRBY', KEYS[4], 'rejected', 1)
    return 'not_in_slate'
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local late = now > deadline
local answered = redis.call('HEXISTS', KEYS[1], 'done' .. i) == 1
if (ARGV[4] ~= '' and redis.call('HEXISTS', KEYS[1], 'id:' .. ARGV[4]) == 1)
    or (ARGV[5] == 'first' and answered and not late)
    or (ARGV[5] == 'first' and ARGV[4] == '' and redis.call('HEXISTS', KEYS[1], 'seen:' .. i) == 1) then
  redis.call('HINCRBY', KEYS[4], 'duplicate', 1)
  return 'duplicate'
end
if seen >= 1000 then
  redis.call('HINCRBY', KEYS[4], 'rejected', 1)
  return 'too_many'
end

-- The ledger: every feedback seen, in order.
local outcome = late and 'late' or 'accepted'
redis.call('HSET', KEYS[1], 'seen', seen + 1, 'seen:' .. i, 1, 'feedback' .. seen,
  cjson.encode({ i, ARGV[3], ARGV[4], outcome, string.format('%d', now) }))
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'id:' .. ARGV[4], 1)
end
if late then
  if status == 'defaulted' or status == 'pending' then
    redis.call('HSET', KEYS[1], 'status', 'late')
  end
  redis.call('HINCRBY', KEYS[4], 'late', 1)
  return 'late'
end

redis.call('HSET', KEYS[1], 'status', 'rewarded')
redis.call('HINCRBY', KEYS[4], 'joined', 1)
if ARGV[5] == 'first' then
  local e = redis.call('HMGET', KEYS[1], 'e' .. i, 'x' .. i, 'done', 'place')
  local place = e[4] and string.format('%d', e[4] + i) or '' -- decisions of older versions have none
  redis.call('XADD', KEYS[3], '*', 'e', e[1], 'x', e[2], 'o', place, 'r', ARGV[3], 's', 'feedback')
  local done = tonumber(e[3] or 0) + 1
  redis.call('HSET', KEYS[1], 'done' .. i, 1, 'done', done)
  redis.call('HINCRBY', KEYS[4], 'events', 1)
  if done == n then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[1], string.format('%d', deadline - now + ARGV[6]))
  end
else
  local before = redis.call('HGET', KEYS[1], 'r' .. i)
  local reward = ARGV[3]
  if before and ARGV[5] == 'sum' then
    reward = string.format('%.17g', tonumber(before) + tonumber(reward))
  elseif before and ARGV[5] == 'max' and tonumber(before) > tonumber(reward) then
    reward = before
  end
  redis.call('HSET', KEYS[1], 'r' .. i, reward)
end
return 'accepted'
