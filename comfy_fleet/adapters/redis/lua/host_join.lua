-- Register a host's node, or move it.  args: host, node, url, pool, cleans_up (bool), most_nodes, most_pools (of the host).
-- ARGV: its record as JSON, the one that it had or ''.
-- Returns 'ok' | 'same' | 'changed' (read it again) | 'owner' (the name is not this host's)
--       | 'url NODE' (the URL is another node's) | 'nodes' (the host has as many as it may) | 'pools' (it would be in one too many)
local host, node, url, record = args.host, args.node, args.url, ARGV[2]
local key = node_key(node)
local had = redis.call('HGET', nodes_key, node)
if had and redis.call('HGET', key, 'host') ~= host then return 'owner' end
if (had or '') ~= ARGV[3] then return 'changed' end
local other = redis.call('HGET', urls_key, url)
if other and other ~= node then return 'url ' .. other end
-- Here, and not before: an agent may send several requests at once.
if not had or redis.call('HGET', key, 'pool') ~= args.pool then
  local others, pools, count = 0, {}, 0
  for _, name in ipairs(redis.call('SMEMBERS', host_nodes_key(host))) do
    local f = redis.call('HMGET', node_key(name), 'host', 'pool')
    if name ~= node and f[1] == host and f[2] then
      others = others + 1
      if not pools[f[2]] then pools[f[2]], count = true, count + 1 end
    end
  end
  if not had and others >= args.most_nodes then return 'nodes' end
  if not pools[args.pool] and count >= args.most_pools then return 'pools' end
end
redis.call('SADD', host_nodes_key(host), node)
redis.call('HSET', key, 'host', host, 'cleans', args.cleans_up and 1 or 0)
if had == record then return 'same' end
if had then
  local was = redis.call('HMGET', key, 'pool', 'url')
  if was[1] ~= args.pool then sched_off(node) end
  if was[1] then redis.call('SREM', pool_nodes_key(was[1]), node) end
  if was[2] then redis.call('HDEL', urls_key, was[2]) end
  if was[2] ~= url then
    unloaded(node)
    free_twins(node)
    if redis.call('HEXISTS', key, 'twin') == 1 then
      redis.call('HSET', key, 'cordoned', 0, 'cordon_reason', '')
      redis.call('HDEL', key, 'twin')
    end
  end
else
  redis.call('HSET', key, 'cordoned', 0)
end
redis.call('HSET', urls_key, url, node)
redis.call('HSET', nodes_key, node, record)
redis.call('HSET', key, 'url', url, 'pool', args.pool)
redis.call('SADD', pool_nodes_key(args.pool), node)
redis.call('PUBLISH', wake_nodes_key, 'nodes')
return 'ok'
