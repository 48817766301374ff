-- Delete a reverse entry, unless a later change has written it anew: who was held up deletes nothing that is needed.
-- KEYS: known by
-- ARGV: user, number of his change
-- Returns how many were deleted.
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored or tonumber(string.match(stored, '^%d+')) > tonumber(ARGV[2]) then
  return 0
end
return redis.call('HDEL', KEYS[1], ARGV[1])
