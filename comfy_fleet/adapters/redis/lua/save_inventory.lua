-- Keep what a node's ComfyUI told of itself.
-- ARGV: node, digest, inventory packed, then field, value ... of the node
-- Returns 'unknown' | 'same' | 'changed'
local node, digest = ARGV[1], ARGV[2]
local key = 'fleet:node:' .. node
if redis.call('HEXISTS', 'fleet:nodes', node) == 0 then return 'unknown' end
local had = redis.call('HMGET', key, 'inventory', 'comfyui', 'vram', 'gpu')
local at = num(now())
redis.call('SET', 'fleet:inventory:' .. digest, ARGV[3])
redis.call('SADD', 'fleet:inventory:' .. digest .. ':nodes', node)
redis.call('HSET', key, 'inventory', digest, 'read', at, unpack(ARGV, 4))
redis.call('DEL', 'fleet:reading:' .. node)
redis.call('HDEL', key, 'unread')
local has = redis.call('HMGET', key, 'comfyui', 'vram', 'gpu')
if had[4] and had[4] ~= has[3] then redis.call('HDEL', key, 'speed', 'speeds') end  -- another card
if had[1] == digest and had[2] == has[1] and had[3] == has[2] then return 'same' end
if had[1] ~= digest then
  redis.call('HSET', key, 'changed', at)
  if had[1] then forget_inventory(had[1], node) end
end
redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes')
return 'changed'
