-- Publish what a loop's sources are made from, counts or embeddings, with the position in the log up to which it counts, in one atomic write
-- that only who began at the version before can make. So every event counts once, whoever counts.
-- KEYS: loop record, retrieval or embedding
-- ARGV: loop id, version that the writer began at, channel, loop name, then field and value of all that is written
-- Returns 1, or 0 when somebody else has written meanwhile, or the loop is gone.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or (redis.call('HGET', KEYS[2], 'version') or '0') ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[2], 'version', ARGV[2] + 1, 'published', now, unpack(ARGV, 5))
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
