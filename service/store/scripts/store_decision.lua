-- Store a decision before it is answered, and join what came before it. A repeated id changes nothing and gets the
-- stored record back.
-- KEYS: decision, pending, events, stats, early, early due (one partition)
-- ARGV: decision id, record, wait time in ms, displayed (0 or 1), aggregation, ledger time in ms, then (item, e, x) for
--   each item of the slate
-- include ledger
-- include open_time
local stored = redis.call('HGET', KEYS[1], 'record')
if stored then
  return stored
end
local now, n = open(), (#ARGV - 9) / 3
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'wait', ARGV[3], 'aggregation', ARGV[5], 'n', n)
for i = 0, n - 1 do
  local at = 7 + 3 * i
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
if #early > 0 then
  for _, kept in ipairs(early) do
    local due, at, item, reward, key, replaces = unpack(cjson.decode(kept))
    if now > tonumber(due) then
      count('unknown')
    else
      count('found')
      if reward == '' then
        display(now)
      else
        join(item, reward, key, replaces, at, now, ARGV[5], ARGV[6])
      end
    end
  end
  redis.call('DEL', KEYS[5])
  redis.call('ZREM', KEYS[6], ARGV[1])
end
return false
