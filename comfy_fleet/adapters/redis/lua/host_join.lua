-- Register a host's node, or move it.  ARGV: host, node, URL, pool, JSON, cleans 0/1, JSON that it had or ''
-- Returns 'ok' | 'same' | 'changed' (read it again) | 'owner' (the name is not this host's)
--       | 'url NODE' (the URL is another node's)
local host, node, url = ARGV[1], ARGV[2], ARGV[3]
local key = 'fleet:node:' .. node
local had = redis.call('HGET', 'fleet:nodes', node)
if had and redis.call('HGET', key, 'host') ~= host then return 'owner' end
if (had or '') ~= ARGV[7] then return 'changed' end
local other = redis.call('HGET', 'fleet:urls', url)
if other and other ~= node then return 'url ' .. other end
redis.call('SADD', 'fleet:host:' .. host .. ':nodes', node)
redis.call('HSET', key, 'host', host, 'cleans', ARGV[6])
if had == ARGV[5] then return 'same' end
if had then
  local was = redis.call('HMGET', key, 'pool', 'url')
  if was[1] then redis.call('SREM', 'fleet:pool:' .. was[1], node) end
  if was[2] then redis.call('HDEL', 'fleet:urls', was[2]) end
  if was[2] ~= url then
    free_twins(node)
    if redis.call('HEXISTS', key, 'twin') == 1 then
      redis.call('HSET', key, 'cordoned', 0, 'cordon_reason', '')
      redis.call('HDEL', key, 'twin')
    end
  end
else
  redis.call('HSET', key, 'cordoned', 0)
end
redis.call('HSET', 'fleet:urls', url, node)
redis.call('HSET', 'fleet:nodes', node, ARGV[5])
redis.call('HSET', key, 'url', url, 'pool', ARGV[4])
redis.call('SADD', 'fleet:pool:' .. ARGV[4], node)
redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes')
return 'ok'
