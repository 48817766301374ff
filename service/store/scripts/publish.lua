-- Checkpoint a policy: state, position in the log and (if it learned) a new version, in one atomic write that
-- only the holder of the lease can make. The oldest versions go when the kept ones outgrow their budget; the
-- newest, and one that is pinned, stay.
-- KEYS: lease, policy, state, versions, history, loop, events
-- ARGV: token, policy name, position, events learned, state, version, snapshot ('' = no new version),
--       prefix of the snapshots' keys, budget in bytes, alarms, entries for the log (one for each new alarm)
-- Returns 1, or 0 when another learner holds the lease or the policy is gone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 0 then
  return 0
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[2], 'position', ARGV[3], 'events', ARGV[4], 'alarms', ARGV[10])
redis.call('SET', KEYS[3], ARGV[5])
for i = 11, #ARGV do
  redis.call('XADD', KEYS[7], '*', 'c', ARGV[i])
end
if ARGV[7] == '' then
  return 1
end
redis.call('SET', ARGV[8] .. ARGV[6], ARGV[7])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 100000, ARGV[6] .. '-0', 'position', ARGV[3])
redis.call('ZADD', KEYS[4], ARGV[6], ARGV[6] .. ':' .. #ARGV[7])
redis.call('HSET', KEYS[2], 'version', ARGV[6], 'published', now, 'bytes', #ARGV[5] + #ARGV[7])
local kept = redis.call('HINCRBY', KEYS[2], 'kept', #ARGV[7])
local pins = redis.call('HGET', KEYS[6], 'pins')
local pinned = pins and cjson.decode(pins)[ARGV[2]]
if kept > tonumber(ARGV[9]) then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, -2)) do
    local version, bytes = member:match('(%d+):(%d+)')
    if tonumber(version) ~= pinned then
      redis.call('DEL', ARGV[8] .. version)
      redis.call('ZREM', KEYS[4], member)
      kept = redis.call('HINCRBY', KEYS[2], 'kept', -bytes)
      if kept <= tonumber(ARGV[9]) then
        break
      end
    end
  end
end
return 1
