-- Append historical events to the log, in the order of their times; an event id that came before changes nothing.
-- KEYS: imported, events, stats
-- ARGV: event ids to remember, then (event id, e, x, reward, time in ms or '') for each event, oldest first
-- Returns the number of events appended, or -1 when a new event is older than one that was imported before.
local last = tonumber(redis.call('HGET', KEYS[3], 'imported_to') or '-inf')
local fresh, newest = {}, last
for at = 2, #ARGV, 5 do
  if not redis.call('ZSCORE', KEYS[1], ARGV[at]) and not fresh[ARGV[at]] then
    fresh[ARGV[at]] = at
    local time = tonumber(ARGV[at + 4])
    if time and time < last then
      return -1
    end
    if time and time > newest then
      newest = time
    end
  end
end
local appended = 0
for at = 2, #ARGV, 5 do
  if fresh[ARGV[at]] == at then
    local number = redis.call('HINCRBY', KEYS[3], 'imported', 1)
    redis.call('ZADD', KEYS[1], number, ARGV[at])
    redis.call('XADD', KEYS[2], '*', 'e', ARGV[at + 1], 'x', ARGV[at + 2], 'r', ARGV[at + 3], 's', 'import',
      't', ARGV[at + 4])
    appended = appended + 1
  end
end
if newest > last then
  redis.call('HSET', KEYS[3], 'imported_to', string.format('%d', newest))
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[1]))
redis.call('HINCRBY', KEYS[3], 'events', appended)
return appended
