-- Append historical events to the log; an event id that came before changes nothing.
-- KEYS: imported, events, stats
-- ARGV: (event id, e, x, reward) for each event
-- Returns the number of events appended.
local appended = 0
for at = 1, #ARGV, 4 do
  if redis.call('SADD', KEYS[1], ARGV[at]) == 1 then
    redis.call('XADD', KEYS[2], '*', 'e', ARGV[at + 1], 'x', ARGV[at + 2], 'r', ARGV[at + 3], 's', 'import')
    appended = appended + 1
  end
end
redis.call('HINCRBY', KEYS[3], 'imported', appended)
redis.call('HINCRBY', KEYS[3], 'events', appended)
return appended
