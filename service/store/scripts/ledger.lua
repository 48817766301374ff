-- The rules of the ledger, which the scripts that include this file share.
-- KEYS: decision, pending, events, stats, early, early due, rewarded (one partition)
-- ARGV: decision id first
local MOST_REPORTS = 1000 -- on one decision, or waiting for it
local MOST_EARLY = 10000 -- that wait for their decisions, of the partition
local MOST_USERS = 10000 -- whose rewarded items wait to be taken up as activity
local MOST_REWARDED = 4096 -- bytes that wait of a user

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%d', number)
end

local function count(counter)
  redis.call('HINCRBY', KEYS[4], counter, 1)
end

-- Count a refusal, and say why.
local function refused(why)
  count('rejected')
  return why
end

-- The decision is shown from now on: its wait begins, and its items take their places among all that were shown.
-- Returns the deadline.
local function show(now, n, wait)
  local deadline = whole(now + wait)
  local place = whole(redis.call('HINCRBY', KEYS[4], 'places', n) - n)
  redis.call('HSET', KEYS[1], 'status', 'pending', 'deadline', deadline, 'place', place)
  redis.call('ZADD', KEYS[2], deadline, ARGV[1])
  return tonumber(deadline)
end

-- Append the event of item i to the log.
local function append(i, reward, source)
  local e = redis.call('HMGET', KEYS[1], 'e' .. i, 'x' .. i, 'place')
  local place = e[3] and whole(e[3] + i) or '' -- decisions of older versions have none
  redis.call('XADD', KEYS[3], '*', 'e', e[1], 'x', e[2], 'o', place, 'r', reward, 's', source)
  redis.call('HSET', KEYS[1], 'done' .. i, 1)
  count('events')
end

-- Return whether a report with this key was seen.
local function known(key)
  return redis.call('HEXISTS', KEYS[1], 'id:' .. key) == 1
end

-- Return the number of the report with this key, and the report; nil where there is none.
local function find(key, seen)
  local counted = redis.call('HGET', KEYS[1], 'id:' .. key) -- up to it; older versions wrote 1 for all
  for number = (counted or seen + 1) - 1, seen - 1 do
    local report = cjson.decode(redis.call('HGET', KEYS[1], 'feedback' .. number))
    if report[3] == key then
      return number, report
    end
  end
end

-- Have an item that was rewarded wait to be taken up as activity of the decision's user (`take_rewarded.lua`), once.
local function note_rewarded(i, at)
  local user = cjson.decode(redis.call('HGET', KEYS[1], 'record'))['user_id']
  if type(user) ~= 'string' or redis.call('HSETNX', KEYS[1], 'activity' .. i, 1) == 0 then
    return
  end
  local waiting = redis.call('HGET', KEYS[7], user)
  if #(waiting or '') >= MOST_REWARDED or (not waiting and redis.call('HLEN', KEYS[7]) >= MOST_USERS) then
    count('activity_dropped')
    return
  end
  local item = redis.call('HGET', KEYS[1], 'item' .. i)
  redis.call('HSET', KEYS[7], user, (waiting or '') .. at .. ' ' .. cjson.encode({ item, 'reward' }) .. '\n')
end

-- Join one report with the decision. A correction takes the turn of the report that it replaces.
-- item: '' = the first, of a correction that of the report; key, replaces: '' = none; at: when it came, in ms;
-- now: in open time, as in all that follows; above: a higher reward counts as activity, '' = none does
-- Returns: accepted | duplicate | late, or why not: not_in_slate | too_many, of a correction also
-- already_learned | unknown_feedback | already_replaced | other_item; nil where there is no such decision.
local function join(item, reward, key, replaces, at, now, aggregation, ledger_ms, above)
  local head = redis.call('HMGET', KEYS[1], 'status', 'deadline', 'n', 'seen', 'settled', 'aggregation', 'wait')
  if not head[1] then
    return nil
  end
  local status, deadline, n, seen = head[1], tonumber(head[2]), tonumber(head[3]), tonumber(head[4] or 0)
  local late = now > deadline or head[5]
  aggregation = head[6] or aggregation -- decisions of older versions do not say it

  local i = 0
  if item ~= '' then
    while i < n and redis.call('HGET', KEYS[1], 'item' .. i) ~= item do
      i = i + 1
    end
    if i == n then
      return refused('not_in_slate')
    end
  end
  if key ~= '' and known(key) then
    count('duplicate')
    return 'duplicate'
  end

  local turn, former, replaced = seen, nil, nil
  if replaces ~= '' then
    if aggregation == 'first' or late then
      return refused('already_learned')
    end
    former, replaced = find(replaces, seen)
    if not former then
      return refused('unknown_feedback')
    elseif replaced[4] == 'replaced' then
      return refused('already_replaced')
    elseif item ~= '' and replaced[1] ~= i then
      return refused('other_item')
    end
    i, turn = replaced[1], replaced[6] or former
  elseif aggregation == 'first' then
    local answered = redis.call('HEXISTS', KEYS[1], 'done' .. i) == 1
    if (answered and not late) or (key == '' and redis.call('HEXISTS', KEYS[1], 'seen:' .. i) == 1) then
      count('duplicate')
      return 'duplicate'
    end
  end
  if seen >= MOST_REPORTS then
    return refused('too_many')
  end

  -- Every report seen, in the order in which it came.
  local outcome = late and 'late' or 'accepted'
  redis.call('HSET', KEYS[1], 'seen', seen + 1, 'seen:' .. i, 1, 'feedback' .. seen,
    cjson.encode({ i, reward, key, outcome, at, turn, replaces }))
  if key ~= '' then
    redis.call('HSET', KEYS[1], 'id:' .. key, seen + 1)
  end
  if late then
    if status == 'defaulted' or status == 'pending' then
      redis.call('HSET', KEYS[1], 'status', 'late')
    end
    count('late')
    return 'late'
  end

  if status == 'undisplayed' then -- who reports on it has seen it
    deadline = show(now, n, head[7])
  end
  if former then
    replaced[4] = 'replaced'
    redis.call('HSET', KEYS[1], 'feedback' .. former, cjson.encode(replaced))
    count('replaced')
  end
  redis.call('HSET', KEYS[1], 'status', 'rewarded')
  count('joined')
  if above ~= '' and tonumber(reward) > tonumber(above) then
    note_rewarded(i, at)
  end
  if aggregation == 'first' then
    append(i, reward, 'feedback')
    if redis.call('HINCRBY', KEYS[1], 'done', 1) == n then
      redis.call('ZREM', KEYS[2], ARGV[1])
      redis.call('PEXPIRE', KEYS[1], whole(deadline - now + ledger_ms))
    end
  end
  return 'accepted'
end

-- Report a display. Returns: displayed | too_late; nil where there is no such decision.
local function display(now)
  local head = redis.call('HMGET', KEYS[1], 'status', 'deadline', 'n', 'settled', 'wait')
  if not head[1] then
    return nil
  end
  if head[1] == 'undisplayed' then
    if now > tonumber(head[2]) or head[4] then
      return 'too_late'
    end
    show(now, tonumber(head[3]), head[5])
  end
  return 'displayed'
end

-- Keep a report whose decision is not there yet, for at most so many ms; 0: that decision cannot come any more.
-- Reports wait in the order in which they came; reward '' = a display.
-- Returns: early, or why not: unknown | too_many | too_many_early
local function keep(now, early_ms, item, reward, key, replaces)
  if tonumber(early_ms) == 0 then
    return refused('unknown')
  end
  local ever = redis.call('HMGET', KEYS[4], 'early', 'found', 'unknown')
  if (ever[1] or 0) - (ever[2] or 0) - (ever[3] or 0) >= MOST_EARLY then
    return refused('too_many_early')
  end
  if redis.call('LLEN', KEYS[5]) >= MOST_REPORTS then
    return refused('too_many')
  end
  local due = whole(now + early_ms)
  redis.call('RPUSH', KEYS[5], cjson.encode({ due, whole(clock()), item, reward, key, replaces }))
  redis.call('ZADD', KEYS[6], 'NX', due, ARGV[1])
  count('early')
  return 'early'
end
