-- Forget a node.  args: node, force (bool).  Returns 'ok' | 'unknown' | the run that is on it.
local node = args.node
if redis.call('HEXISTS', nodes_key, node) == 0 then return 'unknown' end
local runs = node_runs_key(node)
for _, run in ipairs(redis.call('SMEMBERS', runs)) do
  if redis.call('EXISTS', run_key(run)) == 0 then redis.call('SREM', runs, run) end
end
local run = holder_of(node) or redis.call('SRANDMEMBER', runs)
if run and not args.force then return run end
local had = redis.call('HMGET', node_key(node), 'pool', 'inventory', 'url', 'object_info')
local pool, digest = had[1], had[2]
if had[3] then redis.call('HDEL', urls_key, had[3]) end
if digest then forget_shared(inventory_key(digest), inventory_nodes_key(digest), node) end
if had[4] then forget_shared(object_info_key(had[4]), object_info_nodes_key(had[4]), node) end
redis.call('DEL', node_errors_key(node))
unloaded(node)
local host = cleaner_of(node)
for _, file in ipairs(redis.call('HKEYS', staged_key(node))) do give_up_staged(node, file, host, now()) end
-- A run that is still there is ended by its dispatcher; a node that is added again under this name starts free.
redis.call('DEL', lease_key(node), runs, reading_key(node), report_key(node), staged_ahead_key(node))
redis.call('HDEL', nodes_key, node)
redis.call('DEL', node_key(node), sched_node_key(node))
free_twins(node)
if pool then redis.call('SREM', pool_nodes_key(pool), node) end
redis.call('PUBLISH', wake_nodes_key, 'nodes')
return 'ok'
