-- A node was told to unload its models: it does so at once, or behind the prompt that it has.  args: node.
if redis.call('HEXISTS', nodes_key, args.node) == 1 then unloaded(args.node) end
