-- Checkpoint a policy: state, position in the log and (if it learned) a new version, in one atomic write that
-- only the holder of the lease can make. The oldest versions go when the kept ones outgrow their budget, or were made
-- for more encoders than may be kept; the newest, and one that is pinned, stay. Where the log was learned anew, all
-- versions of before go, and a pin with them: they had learned what was erased.
-- KEYS: lease, policy, state, dead letters, versions, history, snapshots, loop record, alarms, encoders
-- ARGV: token, loop id, policy id, policy name, channel, loop name, position, events learned, events skipped,
--       events set aside, state, dead letters ('' = as they were), version, snapshot ('' = no new version),
--       budget in bytes, alarms, encoding, encoder of the snapshot ('' = the loop's first), most encoders of kept versions
--       ('' = not to be looked at), '1' if the log was learned anew, events kept apart, number of encoders, then (version,
--       schema) of each encoder to write down, then each new alarm
-- Returns 1, or 0 when another learner holds the lease, or the policy or the loop is gone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('HGET', KEYS[8], 'id') ~= ARGV[2]
    or redis.call('HGET', KEYS[2], 'id') ~= ARGV[3] then
  return 0
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[2], 'position', ARGV[7], 'events', ARGV[8], 'skipped', ARGV[9],
  'set_aside', ARGV[10], 'alarms', ARGV[16], 'encoding', ARGV[17], 'apart', ARGV[21])
redis.call('SET', KEYS[3], ARGV[11])
if ARGV[12] ~= '' then
  redis.call('SET', KEYS[4], ARGV[12])
end
local alarms = 23 + 2 * tonumber(ARGV[22])
for at = 23, alarms - 1, 2 do
  redis.call('HSET', KEYS[10], ARGV[at], ARGV[at + 1])
end
for at = alarms, #ARGV do
  redis.call('XADD', KEYS[9], 'MAXLEN', '~', 10000, '*', 'alarm', ARGV[at])
end
if ARGV[14] == '' then
  return 1
end
if ARGV[20] == '1' then
  redis.call('DEL', KEYS[5], KEYS[6], KEYS[7])
  redis.call('HSET', KEYS[2], 'kept', 0, 'erased', ARGV[13] - 1)
  local said = redis.call('HGET', KEYS[8], 'pins')
  local all = said and cjson.decode(said) or {}
  if all[ARGV[4]] then
    all[ARGV[4]] = nil
    redis.call('HSET', KEYS[8], 'pins', cjson.encode(all))
    redis.call('HINCRBY', KEYS[8], 'epoch', 1)
  end
end
redis.call('HSET', KEYS[7], ARGV[13], ARGV[14])
redis.call('XADD', KEYS[6], 'MAXLEN', '~', 100000, ARGV[13] .. '-0', 'position', ARGV[7])
redis.call('ZADD', KEYS[5], ARGV[13], ARGV[13] .. ':' .. #ARGV[14] .. (ARGV[18] ~= '' and ':' .. ARGV[18] or ''))
redis.call('HSET', KEYS[2], 'version', ARGV[13], 'published', now, 'bytes', #ARGV[11] + #ARGV[14])
local kept = redis.call('HINCRBY', KEYS[2], 'kept', #ARGV[14])
local pins = redis.call('HGET', KEYS[8], 'pins')
local pinned = pins and cjson.decode(pins)[ARGV[4]]
local oldest = 0 -- of the versions that may be kept for their encoder's sake
if ARGV[19] ~= '' then
  local encoders, found = {}, 0
  for _, member in ipairs(redis.call('ZREVRANGE', KEYS[5], 0, -1)) do
    local version, encoder = member:match('^(%d+):%d+:?(.*)$')
    if not encoders[encoder] then
      encoders[encoder], found = true, found + 1
      if found > tonumber(ARGV[19]) then
        oldest = tonumber(version) + 1
        break
      end
    end
  end
end
if kept > tonumber(ARGV[15]) or oldest > 0 then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[5], 0, -2)) do
    local version, bytes = member:match('^(%d+):(%d+)')
    if kept <= tonumber(ARGV[15]) and tonumber(version) >= oldest then
      break
    end
    if tonumber(version) ~= pinned then
      redis.call('HDEL', KEYS[7], version)
      redis.call('ZREM', KEYS[5], member)
      kept = redis.call('HINCRBY', KEYS[2], 'kept', -bytes)
    end
  end
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
