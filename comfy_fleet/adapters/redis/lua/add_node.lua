-- Register a node.  ARGV: node, URL, pool, JSON.  Returns 'ok' | 'name' | the node that has the URL.
local node, url = ARGV[1], ARGV[2]
if redis.call('HEXISTS', 'fleet:nodes', node) == 1 then return 'name' end
for _, name in ipairs(redis.call('HKEYS', 'fleet:nodes')) do
  if redis.call('HGET', 'fleet:node:' .. name, 'url') == url then return name end
end
redis.call('HSET', 'fleet:nodes', node, ARGV[4])
redis.call('HSET', 'fleet:node:' .. node, 'url', url, 'pool', ARGV[3], 'cordoned', 0)
redis.call('SADD', 'fleet:pool:' .. ARGV[3], node)
redis.call('PUBLISH', 'fleet:wake', 'nodes')
return 'ok'
