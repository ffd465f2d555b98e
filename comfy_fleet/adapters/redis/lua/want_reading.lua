-- Have a node's inventory read again.  ARGV: node.  Returns 1, or 0 if there is no such node.
if redis.call('HEXISTS', 'fleet:nodes', ARGV[1]) == 0 then return 0 end
if redis.call('HSET', 'fleet:node:' .. ARGV[1], 'wanted', 1) == 1 then redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes') end
return 1
