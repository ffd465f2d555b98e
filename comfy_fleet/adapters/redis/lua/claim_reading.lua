-- Read a node's inventory: one process at a time.  args: node, ttl_s.  Returns 1, or 0 if another one reads it.
if redis.call('HEXISTS', nodes_key, args.node) == 0 then return 0 end
if not redis.call('SET', reading_key(args.node), 1, 'NX', 'EX', args.ttl_s) then return 0 end
redis.call('HDEL', node_key(args.node), 'wanted')  -- who wants it again from now on gets a new one
return 1
