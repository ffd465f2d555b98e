-- Forget a node.  ARGV: node, force 0/1.  Returns 'ok' | 'unknown' | the run that is on it.
local node = ARGV[1]
if redis.call('HEXISTS', 'fleet:nodes', node) == 0 then return 'unknown' end
local run = redis.call('GET', 'fleet:lease:' .. node)
if run and ARGV[2] ~= '1' then return run end
local pool = redis.call('HGET', 'fleet:node:' .. node, 'pool')
redis.call('HDEL', 'fleet:nodes', node)
redis.call('DEL', 'fleet:node:' .. node)
if pool then redis.call('SREM', 'fleet:pool:' .. pool, node) end
redis.call('PUBLISH', 'fleet:wake', 'nodes')
return 'ok'
