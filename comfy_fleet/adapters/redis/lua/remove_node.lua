-- Forget a node.  ARGV: node, force 0/1.  Returns 'ok' | 'unknown' | the run that is on it.
local node = ARGV[1]
if redis.call('HEXISTS', 'fleet:nodes', node) == 0 then return 'unknown' end
local runs = 'fleet:node:' .. node .. ':runs'
for _, run in ipairs(redis.call('SMEMBERS', runs)) do
  if redis.call('EXISTS', 'fleet:run:' .. run) == 0 then redis.call('SREM', runs, run) end
end
local run = holder_of(node) or redis.call('SRANDMEMBER', runs)
if run and ARGV[2] ~= '1' then return run end
local had = redis.call('HMGET', 'fleet:node:' .. node, 'pool', 'inventory', 'url')
local pool, digest = had[1], had[2]
if had[3] then redis.call('HDEL', 'fleet:urls', had[3]) end
if digest then forget_inventory(digest, node) end
redis.call('DEL', 'fleet:node:' .. node .. ':errors')
unloaded(node)
-- What still runs there is its dispatcher's to end; a node that is added anew under this name starts free.
redis.call('DEL', 'fleet:lease:' .. node, runs, 'fleet:reading:' .. node, 'fleet:report:' .. node)
redis.call('HDEL', 'fleet:nodes', node)
redis.call('DEL', 'fleet:node:' .. node)
free_twins(node)
if pool then redis.call('SREM', 'fleet:pool:' .. pool, node) end
redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes')
return 'ok'
