-- Take up the rewarded items of one user as his activity, of type `reward`. The script that joined the rewards could not:
-- it knows the decision alone, and not the keys of its user.
-- KEYS: activity, activity users, stats, activity log, rewarded (one partition)
-- ARGV: user, his id as JSON, activities kept, time to live in ms, entries that the log keeps
-- Returns how many.
-- include accept
local kept = redis.call('HGET', KEYS[5], ARGV[1])
if not kept then
  return 0
end
local new = {}
for at, what in string.gmatch(kept, '(%d+) (.-)\n') do
  new[#new + 1] = { tonumber(at), what }
end
redis.call('HDEL', KEYS[5], ARGV[1])
accept(new)
return #new
