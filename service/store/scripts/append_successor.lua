-- Append a successor to the log, unless it is there already, or one that knows as much, or a person's word stands.
-- KEYS: events, successor (one partition)
-- ARGV: encoder, events that it was fitted on, '1' if a person declared it, '1' if only a person may replace it,
--       field c of the entry
-- Returns the position of the entry, or nothing where none was appended.
local newest = redis.call('HMGET', KEYS[2], 'encoder', 'events', 'declared', 'fixed')
if newest[1] then
  local same = newest[1] == ARGV[1]
  if ARGV[3] == '1' then
    if same and newest[3] == '1' and newest[4] == ARGV[4] then
      return false
    end
  elseif same or newest[4] == '1' or tonumber(newest[2]) >= tonumber(ARGV[2]) then
    return false
  end
end
local position = redis.call('XADD', KEYS[1], '*', 'c', ARGV[5])
redis.call('HSET', KEYS[2], 'encoder', ARGV[1], 'events', ARGV[2], 'declared', ARGV[3], 'fixed', ARGV[4],
  'position', position)
return position
