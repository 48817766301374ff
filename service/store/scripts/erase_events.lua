-- Copy the next entries of the log, but those of a user, and the encoders that were fitted to his id. With the last of them the copy takes the log's place, the
-- ledger counts what is gone, and an entry says so: all in one step. Redis keeps what is deleted from the middle of a
-- stream in memory and in its files, so only a copy is without it.
-- KEYS: events, copy, erasure, stats, imported (one partition)
-- ARGV: token of the copy, user, his id as JSON, number of entries to copy, number of trainings, id of the erasure,
--   then field c of each training to ask for, then the version of each encoder to leave out, unless a person declared it
-- Returns 1 when the copy has taken the log's place, 0 when there is more to copy, or -1 when another copy was begun.
-- include of_user
if redis.call('HGET', KEYS[3], 'token') ~= ARGV[1] then
  return -1
end
local after = redis.call('HGET', KEYS[3], 'copied') or '0-0'
local uncounted = redis.call('HGET', KEYS[3], 'uncounted') or '' -- positions of what goes and is no event
local trainings, withdrawn = 6 + tonumber(ARGV[5]), {}
for at = trainings + 1, #ARGV do
  withdrawn[ARGV[at]] = true
end
local function is_withdrawn(fields)
  if fields[1] ~= 'c' then
    return false
  end
  local read, said = pcall(cjson.decode, fields[2])
  return read and withdrawn[said['successor'] or ''] and said['declared'] ~= true
end
local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', ARGV[4])
for _, entry in ipairs(entries) do
  local position, fields = entry[1], entry[2]
  if of_user(fields, ARGV[2], ARGV[3]) then
    local found = {}
    for at = 1, #fields, 2 do
      found[fields[at]] = fields[at + 1]
    end
    if found['c'] then
      uncounted = uncounted .. position .. ' '
    elseif found['s'] == 'import' then
      local read, said = pcall(cjson.decode, found['e'])
      if read and type(said['decision_id']) == 'string' then
        redis.call('ZREM', KEYS[5], said['decision_id'])
      end
    end
  elseif is_withdrawn(fields) then
    uncounted = uncounted .. position .. ' '
  else
    redis.call('XADD', KEYS[2], position, unpack(fields))
  end
  after = position
end
if #entries == tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[3], 'copied', after, 'uncounted', uncounted)
  return 0
end

-- The log may have been trimmed meanwhile: what went then is counted there.
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('XTRIM', KEYS[2], 'MINID', first[1])
end
local gone = redis.call('XLEN', KEYS[1]) - redis.call('XLEN', KEYS[2])
for position in string.gmatch(uncounted, '%S+') do
  gone = gone - #redis.call('XRANGE', KEYS[1], position, position)
end
-- Positions go on rising, even where the last entries are gone and the clock was set back.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local last = newest and newest[1] or '0-1'
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('XADD', KEYS[2], last, 'c', '{}')
  redis.call('XDEL', KEYS[2], last)
end
redis.call('XSETID', KEYS[2], last)
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('HINCRBY', KEYS[4], 'erased', gone)
for at = 7, trainings do
  redis.call('XADD', KEYS[1], '*', 'c', ARGV[at])
end
local events = tonumber(redis.call('HGET', KEYS[4], 'events') or 0)
local said = cjson.encode({ v = 2, erasure = true, events = events })
local position = redis.call('XADD', KEYS[1], '*', 'c', said)
redis.call('HSET', KEYS[3], 'newest', position, ARGV[6] .. '/position', position, ARGV[6] .. '/events', gone)
redis.call('HDEL', KEYS[3], 'token', 'copied', 'uncounted')
return 1
