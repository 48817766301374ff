-- Checkpoint a policy: state, position in the log and (if it learned) a new version, in one atomic write that
-- only the holder of the lease can make. The oldest versions go when the kept ones outgrow their budget, or were made
-- for more encoders than may be kept; the newest, and one that is pinned, stay.
-- KEYS: lease, policy, state, versions, history, snapshots, loop record, alarms, encoders
-- ARGV: token, loop id, policy id, policy name, channel, loop name, position, events learned, events skipped,
--       state, version, snapshot ('' = no new version), budget in bytes, alarms, encoding, encoder of the snapshot
--       ('' = the loop's first), most encoders of kept versions ('' = not to be looked at), number of encoders,
--       then (version, schema) of each encoder to write down, then each new alarm
-- Returns 1, or 0 when another learner holds the lease, or the policy or the loop is gone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('HGET', KEYS[7], 'id') ~= ARGV[2]
    or redis.call('HGET', KEYS[2], 'id') ~= ARGV[3] then
  return 0
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[2], 'position', ARGV[7], 'events', ARGV[8], 'skipped', ARGV[9], 'alarms', ARGV[14],
  'encoding', ARGV[15])
redis.call('SET', KEYS[3], ARGV[10])
local alarms = 19 + 2 * tonumber(ARGV[18])
for at = 19, alarms - 1, 2 do
  redis.call('HSET', KEYS[9], ARGV[at], ARGV[at + 1])
end
for at = alarms, #ARGV do
  redis.call('XADD', KEYS[8], 'MAXLEN', '~', 10000, '*', 'alarm', ARGV[at])
end
if ARGV[12] == '' then
  return 1
end
redis.call('HSET', KEYS[6], ARGV[11], ARGV[12])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 100000, ARGV[11] .. '-0', 'position', ARGV[7])
redis.call('ZADD', KEYS[4], ARGV[11], ARGV[11] .. ':' .. #ARGV[12] .. (ARGV[16] ~= '' and ':' .. ARGV[16] or ''))
redis.call('HSET', KEYS[2], 'version', ARGV[11], 'published', now, 'bytes', #ARGV[10] + #ARGV[12])
local kept = redis.call('HINCRBY', KEYS[2], 'kept', #ARGV[12])
local pins = redis.call('HGET', KEYS[7], 'pins')
local pinned = pins and cjson.decode(pins)[ARGV[4]]
local oldest = 0 -- of the versions that may be kept for their encoder's sake
if ARGV[17] ~= '' then
  local encoders, found = {}, 0
  for _, member in ipairs(redis.call('ZREVRANGE', KEYS[4], 0, -1)) do
    local version, encoder = member:match('^(%d+):%d+:?(.*)$')
    if not encoders[encoder] then
      encoders[encoder], found = true, found + 1
      if found > tonumber(ARGV[17]) then
        oldest = tonumber(version) + 1
        break
      end
    end
  end
end
if kept > tonumber(ARGV[13]) or oldest > 0 then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, -2)) do
    local version, bytes = member:match('^(%d+):(%d+)')
    if kept <= tonumber(ARGV[13]) and tonumber(version) >= oldest then
      break
    end
    if tonumber(version) ~= pinned then
      redis.call('HDEL', KEYS[6], version)
      redis.call('ZREM', KEYS[4], member)
      kept = redis.call('HINCRBY', KEYS[2], 'kept', -bytes)
    end
  end
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
