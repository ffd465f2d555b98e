-- Stop new jobs on a node, or allow them again.  args: node, cordoned (bool), reason.
-- Returns 1, or 0 if there is no such node.
local key = node_key(args.node)
if redis.call('HEXISTS', nodes_key, args.node) == 0 then return 0 end
redis.call('HSET', key, 'cordoned', args.cordoned and 1 or 0, 'cordon_reason', args.reason)
redis.call('HDEL', key, 'quarantined', 'strikes_oom', 'strikes_gpu', 'strikes_answer', 'strikes_frame', 'renewed', 'twin')
if args.cordoned then
  sched_off(args.node)
elseif redis.call('HGET', key, 'verdict') == 'up' then
  sched_on(args.node)
end
redis.call('PUBLISH', wake_nodes_key, 'nodes')
return 1
