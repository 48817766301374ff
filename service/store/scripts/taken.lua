-- What is counted of one user: what he took, and until when. `at` is the place of a key in KEYS.

-- He took an item then, in ms. The newest `kept` are kept, for so many ms from now on.
local function mark(at, item, when, kept, ms)
  if when > tonumber(redis.call('ZSCORE', KEYS[at], item) or -1) then
    redis.call('ZADD', KEYS[at], whole(when), item)
  end
  redis.call('ZREMRANGEBYRANK', KEYS[at], 0, -kept - 1)
  redis.call('PEXPIRE', KEYS[at], ms)
end

-- Something is counted for him, for so many ms from now on.
local function counted(at, user, now, ms)
  redis.call('ZADD', KEYS[at], whole(now + ms), user)
  redis.call('ZREMRANGEBYSCORE', KEYS[at], '-inf', whole(now))
end
