-- Read a node's inventory: one process at a time.  ARGV: node, ttl.  Returns 1, or 0 if another one reads it.
if redis.call('HEXISTS', 'fleet:nodes', ARGV[1]) == 0 then return 0 end
if not redis.call('SET', 'fleet:reading:' .. ARGV[1], 1, 'NX', 'EX', ARGV[2]) then return 0 end
redis.call('HDEL', 'fleet:node:' .. ARGV[1], 'wanted')  -- who wants it again from now on gets a new one
return 1
