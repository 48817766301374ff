-- Remove the encoders that nothing names: no kept version, no trial, no beginning of a policy, and not the loop.
-- KEYS: loop record, encoders, policies, then the record of each policy, then the kept versions of each policy
-- ARGV: loop id, number of policies
-- Returns the number of encoders removed; 0 when the loop is gone, or there are other policies by now.
local n = tonumber(ARGV[2])
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or redis.call('SCARD', KEYS[3]) ~= n then
  return 0
end
local named = {}
local newest = redis.call('HGET', KEYS[1], 'newest')
local of_loop = newest and cjson.decode(newest)
if type(of_loop) == 'table' then
  named[of_loop['encoder']] = true
end
named[redis.call('HGET', KEYS[1], 'declared') or ''] = true
for at = 4, 3 + n do
  for _, said in ipairs(redis.call('HMGET', KEYS[at], 'begun', 'encoding')) do
    local found = said and cjson.decode(said)
    if type(found) == 'table' then
      named[found['encoder']] = true
      if type(found['trial']) == 'table' then
        named[found['trial']['encoder']] = true
      end
    end
  end
end
for at = 4 + n, 3 + 2 * n do
  for _, member in ipairs(redis.call('ZRANGE', KEYS[at], 0, -1)) do
    named[member:match('^%d+:%d+:(.+)$') or ''] = true
  end
end
local gone = 0
for _, version in ipairs(redis.call('HKEYS', KEYS[2])) do
  if not named[version] then
    gone = gone + redis.call('HDEL', KEYS[2], version)
  end
end
return gone
