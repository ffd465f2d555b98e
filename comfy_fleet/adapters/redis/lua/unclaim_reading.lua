-- A node could not be read: let others try, and say why.  args: node, why (or '').
redis.call('DEL', reading_key(args.node))
if args.why == '' or redis.call('HEXISTS', nodes_key, args.node) == 0 then return 0 end
redis.call('HSET', node_key(args.node), 'unread', args.why)
return 1
