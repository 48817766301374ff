-- End the second step of a user's change of edges, unless he has changed them again: then it is done once more.
-- KEYS: edges pending, linked, edges, stats (one partition)
-- ARGV: user, number of the change, how many links are gone, these, then digests of edges that found no room at the other
-- Returns 1, or 0 when there is a later change, or another process has ended it.
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
local going = tonumber(ARGV[3])
for at = 4, 3 + going do
  redis.call('SREM', KEYS[2], ARGV[at])
end
local refused = 0
for at = 4 + going, #ARGV do
  refused = refused + redis.call('HDEL', KEYS[3], ARGV[at])
end
if refused > 0 then
  redis.call('HINCRBY', KEYS[4], 'edges', -refused)
  redis.call('HINCRBY', KEYS[4], 'edges_refused', refused)
  if redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('HINCRBY', KEYS[4], 'edge_users', -1)
  end
end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
