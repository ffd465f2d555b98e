-- Have the agent that runs a node restart it.  ARGV: node.  Returns 1, or 0 if there is no such node.
if redis.call('HEXISTS', 'fleet:nodes', ARGV[1]) == 0 then return 0 end
redis.call('HSET', 'fleet:node:' .. ARGV[1], 'restart', 1)
return 1
