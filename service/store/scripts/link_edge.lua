-- Write the reverse entry of a user's edges at one whom they name, unless there are as many as there may be.
-- KEYS: known by
-- ARGV: user, number of his change, his id as JSON, entries at most
-- Returns 1, or 0 where there is no room.
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return 0
end
if not stored or tonumber(string.match(stored, '^%d+')) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
end
return 1
