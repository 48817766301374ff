-- Open time, in which deadlines are kept: it stands still while feedback could not be taken.
-- ARGV, at the end: ms for which it stood still, ever; time of the newest heartbeat that the caller knows, in ms
--   ('' = not to be checked), and for how long that is news enough. After it, it may have stood still since.
local closed, beat = tonumber(ARGV[#ARGV - 2]), tonumber(ARGV[#ARGV - 1])
if beat and clock() - beat > tonumber(ARGV[#ARGV]) then
  return redis.error_reply('STALE the last heartbeat is too long ago')
end
local function open()
  return clock() - closed
end
