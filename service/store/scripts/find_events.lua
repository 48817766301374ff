-- Look for the events of a user among the next entries of the log.
-- KEYS: events
-- ARGV: user, his id as JSON, position after which to look, number of entries to look at
-- Returns how many entries were looked at, the position of the last of them, and the entries of the user.
-- include of_user
local looked_at, found, last = 0, {}, ARGV[3]
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[3], '+', 'COUNT', ARGV[4])) do
  looked_at, last = looked_at + 1, entry[1]
  if of_user(entry[2], ARGV[1], ARGV[2]) then
    found[#found + 1] = entry
  end
end
return { looked_at, last, found }
