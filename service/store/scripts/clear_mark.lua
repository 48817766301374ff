-- Take a mark off a user, unless he was marked again since.
-- KEYS: acted
-- ARGV: user, number of the mark
-- Returns how many were taken off.
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
return redis.call('ZREM', KEYS[1], ARGV[1])
