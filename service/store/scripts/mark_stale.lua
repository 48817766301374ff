-- Say that the neighbourhoods of users have changed: their fields are to be computed again.
-- KEYS: graph stale, stats (one partition)
-- ARGV: users
-- Returns how many were current.
local number, current = redis.call('HINCRBY', KEYS[2], 'graph_marks', 1), 0
for _, user in ipairs(ARGV) do
  current = current + redis.call('ZADD', KEYS[1], number, user)
end
return current
