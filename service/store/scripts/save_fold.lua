-- Checkpoint a fold over a loop's log, such as its profile: what it has seen and the position in the log up to which, in
-- one atomic write that only who began at the position before can make. So every event counts once, whoever folds.
-- KEYS: loop record, hash of the fold
-- ARGV: loop id, position that the writer began at, then field and value of all that is written
-- Returns 1, or 0 when somebody else has written meanwhile, or the loop is gone.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or (redis.call('HGET', KEYS[2], 'position') or '0-0') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
return 1
