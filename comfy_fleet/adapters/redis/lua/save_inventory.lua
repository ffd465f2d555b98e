-- Keep what a node's ComfyUI told of itself.  args: node, digest, fields (of the node).  ARGV: inventory, packed.
-- Returns 'unknown' | 'same' | 'changed'.
local node, digest = args.node, args.digest
local key = node_key(node)
if redis.call('HEXISTS', nodes_key, node) == 0 then return 'unknown' end
local had = redis.call('HMGET', key, 'inventory', 'comfyui', 'vram', 'gpu')
local at = num(now())
redis.call('SET', inventory_key(digest), ARGV[2])
redis.call('SADD', inventory_nodes_key(digest), node)
redis.call('HSET', key, 'inventory', digest, 'read', at, unpack(flat(args.fields)))
redis.call('DEL', reading_key(node))
redis.call('HDEL', key, 'unread')
local has = redis.call('HMGET', key, 'comfyui', 'vram', 'gpu')
if had[4] and had[4] ~= has[3] then redis.call('HDEL', key, 'speed', 'speeds') end  -- another card
if had[1] == digest and had[2] == has[1] and had[3] == has[2] then return 'same' end
if had[1] ~= digest then
  redis.call('HSET', key, 'changed', at)
  if had[1] then forget_inventory(had[1], node) end
end
redis.call('PUBLISH', wake_nodes_key, 'nodes')
return 'changed'
