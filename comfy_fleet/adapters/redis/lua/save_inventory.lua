-- Keep what a node's ComfyUI told of itself.
-- args: node, digest, fields (of the node), told (content hash of what /object_info answered; nil: not to be kept).
-- ARGV: inventory, packed; what /object_info answered, packed, or '' if it was there.
-- Returns 'unknown' | 'same' | 'changed'.
local node, digest = args.node, args.digest
local key = node_key(node)
if redis.call('HEXISTS', nodes_key, node) == 0 then return 'unknown' end
local had = redis.call('HMGET', key, 'inventory', 'comfyui', 'vram', 'gpu', 'object_info')
local at = num(now())
redis.call('SET', inventory_key(digest), ARGV[2])
redis.call('SADD', inventory_nodes_key(digest), node)
local told = args.told
if told and ARGV[3] ~= '' then redis.call('SET', object_info_key(told), ARGV[3]) end
if told and redis.call('EXISTS', object_info_key(told)) == 1 then
  redis.call('SADD', object_info_nodes_key(told), node)
  redis.call('HSET', key, 'object_info', told)
else  -- its last node has gone since we looked: the next reading brings it
  told = nil
  redis.call('HDEL', key, 'object_info')
end
if had[5] and had[5] ~= told then forget_shared(object_info_key(had[5]), object_info_nodes_key(had[5]), node) end
redis.call('HSET', key, 'inventory', digest, 'read', at, unpack(flat(args.fields)))
redis.call('DEL', reading_key(node))
redis.call('HDEL', key, 'unread')
local has = redis.call('HMGET', key, 'comfyui', 'vram', 'gpu')
if had[4] and had[4] ~= has[3] then redis.call('HDEL', key, 'speed', 'speeds') end  -- another card
if had[1] == digest and had[2] == has[1] and had[3] == has[2] then return 'same' end
if had[1] ~= digest then
  redis.call('HSET', key, 'changed', at)
  if had[1] then forget_shared(inventory_key(had[1]), inventory_nodes_key(had[1]), node) end
end
redis.call('PUBLISH', wake_nodes_key, 'nodes')
return 'changed'
