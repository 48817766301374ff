-- Store a decision before it is answered. A repeated id changes nothing and gets the stored record back.
-- KEYS: decision, pending, stats (one partition)
-- ARGV: decision id, record, wait time in ms, then (item, e, x) for each item of the slate
local stored = redis.call('HGET', KEYS[1], 'record')
if stored then
  return stored
end
local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
local n = (#ARGV - 3) / 3
local place = redis.call('HINCRBY', KEYS[3], 'places', n) - n -- of its first item in the order of decisions
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'status', 'pending', 'deadline', string.format('%d', deadline), 'n', n,
  'place', string.format('%d', place))
for i = 0, n - 1 do
  local at = 4 + 3 * i
  redis.call('HSET', KEYS[1], 'item' .. i, ARGV[at], 'e' .. i, ARGV[at + 1], 'x' .. i, ARGV[at + 2])
end
redis.call('ZADD', KEYS[2], string.format('%d', deadline), ARGV[1])
redis.call('HINCRBY', KEYS[3], 'decisions', 1)
return false
