-- Register a node.  args: node, url, pool.  ARGV: its record as JSON.
-- Returns 'ok' | 'name' | the node that has the URL.
local node, url = args.node, args.url
if redis.call('HEXISTS', nodes_key, node) == 1 then return 'name' end
local other = redis.call('HGET', urls_key, url)
if other then return other end
redis.call('HSET', urls_key, url, node)
redis.call('HSET', nodes_key, node, ARGV[2])
redis.call('HSET', node_key(node), 'url', url, 'pool', args.pool, 'cordoned', 0)
redis.call('SADD', pool_nodes_key(args.pool), node)
redis.call('PUBLISH', wake_nodes_key, 'nodes')
return 'ok'
