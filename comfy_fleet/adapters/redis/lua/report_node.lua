-- Record what HAProxy says of a node.  ARGV: node, verdict, why
-- Returns 'unknown' | 'same' | 'changed' | 'started': a node that was down is back
local node, verdict = ARGV[1], ARGV[2]
local key = 'fleet:node:' .. node
if redis.call('HEXISTS', 'fleet:nodes', node) == 0 then return 'unknown' end
local had = redis.call('HGET', key, 'verdict')
redis.call('HSET', key, 'verdict', verdict, 'why', ARGV[3])
if verdict == 'up' then redis.call('PUBLISH', 'fleet:wake', 'free') end
if had == verdict then return 'same' end
if had == 'down' and verdict ~= 'new' then
  node_started(node)
  return 'started'
end
-- It answers now: whoever keeps inventories reads it at once.
if (verdict == 'up' or verdict == 'drain') and redis.call('HEXISTS', key, 'inventory') == 0 then redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes') end
return 'changed'
