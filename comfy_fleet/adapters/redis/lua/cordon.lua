-- Keep new jobs from a node, or let them come again.  ARGV: node, cordoned 0/1, reason
-- Returns 1, or 0 if there is no such node.
local key = 'fleet:node:' .. ARGV[1]
if redis.call('HEXISTS', 'fleet:nodes', ARGV[1]) == 0 then return 0 end
redis.call('HSET', key, 'cordoned', ARGV[2], 'cordon_reason', ARGV[3])
redis.call('HDEL', key, 'quarantined', 'strikes_oom', 'strikes_gpu', 'strikes_answer', 'strikes_frame', 'renewed', 'twin')
redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes')
return 1
