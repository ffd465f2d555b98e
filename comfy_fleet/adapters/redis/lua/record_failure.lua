-- A job failed because of its node: count it, and cordon the node after too many in a row.
-- args: node, kind (oom | gpu | answer | frame), limit, reason.  Returns how many in a row; negative if it was cordoned now.
local kind = args.kind
local key = node_key(args.node)
if redis.call('HEXISTS', nodes_key, args.node) == 0 then return 0 end
if kind == 'oom' then unloaded(args.node) end  -- ComfyUI does that by itself
local count = redis.call('HINCRBY', key, 'strikes_' .. kind, 1)
if count < args.limit or redis.call('HGET', key, 'cordoned') == '1' then return count end
redis.call('HSET', key, 'cordoned', 1, 'cordon_reason', args.reason, 'quarantined', 1)
sched_off(args.node)
-- Only a restart cures a GPU fault. The node's agent does it, unless the last restart did not help.
if kind == 'gpu' and redis.call('HEXISTS', key, 'host') == 1 and redis.call('HEXISTS', key, 'renewed') == 0 then
  redis.call('HSET', key, 'restart', 1, 'renewed', 1)
end
redis.call('PUBLISH', wake_nodes_key, 'nodes')
return -count
