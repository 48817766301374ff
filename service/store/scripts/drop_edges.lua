-- Delete edges of one user. They wait for their second step, as new ones do (`take_edges.lua`).
-- KEYS: edges, edges pending, stats (one partition)
-- ARGV: user, digests of the edges
-- Returns how many there were.
local gone = redis.call('HDEL', KEYS[1], unpack(ARGV, 2))
if gone > 0 then
  redis.call('HINCRBY', KEYS[3], 'edges', -gone)
  if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('HINCRBY', KEYS[3], 'edge_users', -1)
  end
  redis.call('ZADD', KEYS[2], redis.call('HINCRBY', KEYS[3], 'edge_changes', 1), ARGV[1])
end
return gone
