-- Take objects that are to be deleted, each for a while.  args: most, lease_s.  Returns them, the longest due first.
local at = now()
local found = redis.call('ZRANGEBYSCORE', cleared(erasures_key, 'zset'), '-inf', num(at), 'LIMIT', 0, args.most)
for _, member in ipairs(found) do redis.call('ZADD', erasures_key, num(at + args.lease_s), member) end
return found
