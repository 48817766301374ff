-- Delete a decision with the reports that wait for it, and count it.
-- KEYS: decision, pending, events, stats, early, early due, rewarded, erasure (one partition)
-- ARGV: decision id, field of the erasure that counts it
-- Returns 1, or 0 when it is gone already.
if redis.call('DEL', KEYS[1]) == 0 then
  return 0
end
if redis.call('ZREM', KEYS[2], ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[4], 'erased_pending', 1)
end
redis.call('DEL', KEYS[5])
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('HINCRBY', KEYS[8], ARGV[2], 1)
return 1
