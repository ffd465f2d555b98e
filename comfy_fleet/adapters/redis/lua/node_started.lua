-- A node's ComfyUI has started anew.  ARGV: node.  Returns 1, or 0 if there is no such node.
if redis.call('HEXISTS', 'fleet:nodes', ARGV[1]) == 0 then return 0 end
node_started(ARGV[1])
return 1
