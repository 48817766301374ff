-- Checkpoint the keeper of a loop's graph, in one atomic write that only who began at the position before can make.
-- KEYS: loop record, graph
-- ARGV: loop id, position that the writer began at, format, position
-- Returns 1, or 0 when somebody else has written meanwhile, or the loop is gone.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or (redis.call('HGET', KEYS[2], 'position') or '0-0') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[2], 'v', ARGV[3], 'position', ARGV[4])
return 1
