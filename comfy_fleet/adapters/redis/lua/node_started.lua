-- A node's ComfyUI was restarted.  args: node.  Returns 1, or 0 if there is no such node.
if redis.call('HEXISTS', nodes_key, args.node) == 0 then return 0 end
node_started(args.node)
return 1
