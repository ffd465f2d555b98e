-- Have a node's inventory read again.  args: node.  Returns 1, or 0 if there is no such node.
if redis.call('HEXISTS', nodes_key, args.node) == 0 then return 0 end
if redis.call('HSET', node_key(args.node), 'wanted', 1) == 1 then redis.call('PUBLISH', wake_nodes_key, 'nodes') end
return 1
