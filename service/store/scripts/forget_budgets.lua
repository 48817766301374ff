-- Forget the counts of budgets that were taken away, where nothing was counted for long.
-- KEYS: budgets, or granted
-- ARGV: for how long, in ms, then the fields
-- Returns how many were forgotten.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local forgotten = 0
for i = 2, #ARGV do
  local last = string.match(redis.call('HGET', KEYS[1], ARGV[i]) or '', '%d+$')
  if last and now - tonumber(last) > tonumber(ARGV[1]) then
    forgotten = forgotten + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return forgotten
