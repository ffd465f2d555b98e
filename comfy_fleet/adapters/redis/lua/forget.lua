-- Remove every trace of a final job.  ARGV: job.  Returns 1 if it was there.
local id = ARGV[1]
local key = jobkey(id)
local f = fields(key, 'status', 'owner', 'graph')
redis.call('ZREM', 'fleet:expiring', id)
if not f[1] then
  redis.call('ZREM', 'fleet:jobs', id)
  return 0
end
if redis.call('HINCRBY', 'fleet:graphs', f[3], -1) <= 0 then
  redis.call('HDEL', 'fleet:graphs', f[3])
  redis.call('DEL', 'fleet:graph:' .. f[3])
end
redis.call('ZREM', 'fleet:jobs', id)
redis.call('ZREM', 'fleet:jobs:' .. f[2], id)
redis.call('DEL', key, key .. ':outputs', key .. ':ui', key .. ':secret', key .. ':preview', 'rq:job:' .. id, 'rq:results:' .. id)
for _, registry in ipairs({ 'rq:finished:', 'rq:failed:', 'rq:canceled:' }) do
  redis.call('ZREM', registry .. QUEUE, id)
end
return 1
