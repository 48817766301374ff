-- A deferred decision was displayed: its wait for feedback begins. A repeat changes nothing.
-- KEYS: decision, pending, events, stats, early, early due, rewarded (one partition)
-- ARGV: decision id, time to keep it in ms where the decision is not there yet (0 = it cannot come)
-- Returns: what `display` or `keep` in ledger.lua do
-- include ledger
-- include open_time
local now = open()
return display(now) or keep(now, ARGV[2], '', '', '', '')
