-- Record a node's state as HAProxy reports it.  args: node, verdict, why.
-- Returns 'unknown' | 'same' | 'changed' | 'started': a node that was down is back.
local node, verdict = args.node, args.verdict
local key = node_key(node)
if redis.call('HEXISTS', nodes_key, node) == 0 then return 'unknown' end
local had = redis.call('HGET', key, 'verdict')
redis.call('HSET', key, 'verdict', verdict, 'why', args.why)
if verdict == 'up' then redis.call('PUBLISH', wake_key, 'free') end
if had == verdict then return 'same' end
if verdict ~= 'up' then
  sched_off(node)
elseif redis.call('HGET', key, 'cordoned') ~= '1' then
  sched_on(node)
end
if had == 'down' and verdict ~= 'new' then
  node_started(node)
  return 'started'
end
-- It answers now: processes that keep inventories read it at once.
if (verdict == 'up' or verdict == 'drain') and redis.call('HEXISTS', key, 'inventory') == 0 then
  redis.call('PUBLISH', wake_nodes_key, 'nodes')
end
return 'changed'
