-- Register a node.  ARGV: node, URL, pool, JSON.  Returns 'ok' | 'name' | the node that has the URL.
local node, url = ARGV[1], ARGV[2]
if redis.call('HEXISTS', 'fleet:nodes', node) == 1 then return 'name' end
local other = redis.call('HGET', 'fleet:urls', url)
if other then return other end
redis.call('HSET', 'fleet:urls', url, node)
redis.call('HSET', 'fleet:nodes', node, ARGV[4])
redis.call('HSET', 'fleet:node:' .. node, 'url', url, 'pool', ARGV[3], 'cordoned', 0)
redis.call('SADD', 'fleet:pool:' .. ARGV[3], node)
redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes')
return 'ok'
