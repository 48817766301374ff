-- Copy the next entries of the log of activity, but those of a user. With the last of them the copy takes the log's
-- place, and what is gone is counted: all in one step (`erase_events.lua` does so with the log of events).
-- KEYS: activity log, copy, erasure, stats (one partition)
-- ARGV: token of the copy, his id as JSON, number of entries to copy, field of the erasure that counts his activity
-- Returns 1 when the copy has taken the log's place, 0 when there is more to copy, or -1 when another copy was begun.
if redis.call('HGET', KEYS[3], 'activity-token') ~= ARGV[1] then
  return -1
end
local after = redis.call('HGET', KEYS[3], 'activity-copied') or '0-0'
local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', ARGV[3])
for _, entry in ipairs(entries) do
  local position, fields = entry[1], entry[2]
  local his = false
  for at = 1, #fields, 2 do
    his = his or (fields[at] == 'u' and fields[at + 1] == ARGV[2])
  end
  if not his then
    redis.call('XADD', KEYS[2], position, unpack(fields))
  end
  after = position
end
if #entries == tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[3], 'activity-copied', after)
  return 0
end

local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then
  if redis.call('EXISTS', KEYS[2]) == 1 then -- the log may have been trimmed meanwhile: that is counted already
    redis.call('XTRIM', KEYS[2], 'MINID', first[1])
  end
  local gone = redis.call('XLEN', KEYS[1]) - redis.call('XLEN', KEYS[2])
  -- Positions go on rising, even where the last entries are gone and the clock was set back.
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('XADD', KEYS[2], last, 'u', '')
    redis.call('XDEL', KEYS[2], last)
  end
  redis.call('XSETID', KEYS[2], last)
  redis.call('RENAME', KEYS[2], KEYS[1])
  redis.call('HINCRBY', KEYS[4], 'activity_erased', gone)
  local counted = tonumber(redis.call('HGET', KEYS[3], ARGV[4]) or 0) -- of what was kept, which the log holds, too
  redis.call('HSET', KEYS[3], ARGV[4], math.max(counted, gone))
end
redis.call('HDEL', KEYS[3], 'activity-token', 'activity-copied')
return 1
