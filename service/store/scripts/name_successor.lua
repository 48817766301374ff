-- Say in a loop's record which successor is the newest in its log, and write its schema down.
-- KEYS: loop record, encoders
-- ARGV: channel, loop name, loop id, encoder, its schema, position in the log, the record of the newest,
--       the encoder that a person declared ('' = none), or '=' to leave that as it is
-- Returns the new epoch, or 'gone'.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[3] then
  return 'gone'
end
local function later(one, other)
  local ms, n = one:match('(%d+)-(%d+)')
  local other_ms, other_n = other:match('(%d+)-(%d+)')
  if ms ~= other_ms then
    return tonumber(ms) > tonumber(other_ms)
  end
  return tonumber(n) > tonumber(other_n)
end
local first = redis.call('HGET', KEYS[1], 'encoder') == ARGV[4] -- its schema is in the record
local said = redis.call('HGET', KEYS[1], 'newest')
local newest = said and cjson.decode(said)
if type(newest) ~= 'table' or later(ARGV[6], newest['position']) then
  redis.call('HSET', KEYS[1], 'newest', ARGV[7])
end
if ARGV[8] ~= '=' then
  redis.call('HSET', KEYS[1], 'declared', ARGV[8])
end
if not first then
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
