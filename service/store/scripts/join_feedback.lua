-- Join one report with its decision, or keep it until the decision comes: idempotent, atomic, one round trip.
-- KEYS: decision, pending, events, stats, early, early due, rewarded (one partition)
-- ARGV: decision id, item ('' = the first), reward, key ('' = none), key of the report that it replaces ('' = none),
--   aggregation, ledger time in ms, time to keep it in ms (0 = the decision cannot come), the reward above which the
--   item counts as activity ('' = none does)
-- Returns: what `join` or `keep` in ledger.lua do
-- include ledger
-- include open_time
local now = open()
return join(ARGV[2], ARGV[3], ARGV[4], ARGV[5], whole(clock()), now, ARGV[6], ARGV[7], ARGV[9])
  or keep(now, ARGV[8], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
