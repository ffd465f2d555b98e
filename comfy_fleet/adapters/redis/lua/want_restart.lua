-- Have the agent that runs a node restart it.  args: node.  Returns 1, or 0 if there is no such node.
if redis.call('HEXISTS', nodes_key, args.node) == 0 then return 0 end
redis.call('HSET', node_key(args.node), 'restart', 1)
return 1
