-- Write the fields of a user's neighbourhood, unless it has changed since, or another process has written them.
-- KEYS: graph stale, graph (one partition)
-- ARGV: user, number of the mark, the fields ('' = there are none, '=' = they are what they were)
-- Returns 1, or 0 when nothing was written.
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[2])
elseif ARGV[3] ~= '=' then
  redis.call('SET', KEYS[2], ARGV[3])
end
return redis.call('ZREM', KEYS[1], ARGV[1])
