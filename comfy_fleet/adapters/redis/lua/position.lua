-- The place of a queued job among all queued jobs.
-- ARGV: placement, id
-- Returns 1 for the next one, 0 if it does not wait.
local rank = redis.call('ZSCORE', 'fleet:queue:' .. ARGV[1], ARGV[2])
if not rank then return 0 end
local place = 1
for _, placement in ipairs(redis.call('SMEMBERS', 'fleet:placements')) do
  place = place + redis.call('ZCOUNT', 'fleet:queue:' .. placement, '-inf', '(' .. rank)
end
return place
