-- Take the best job of some placement classes for a node that HAProxy granted.
-- ARGV: node, run, token, dispatcher, ttl, peek, placement ...
-- Returns {'schema', layout} | {'removed'|'cordoned'|'empty'} | {'leased', run} | {'ok', job, record, graph, RQ data, jobs that wait behind it}
local other = other_schema()
if other then return other end
local node, run, token, who, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if redis.call('HEXISTS', 'fleet:nodes', node) == 0 then return { 'removed' } end
if redis.call('HGET', 'fleet:node:' .. node, 'cordoned') == '1' then return { 'cordoned' } end
local holder = holder_of(node)
if holder then return { 'leased', holder } end

local at = now()
local card = tonumber(redis.call('HGET', 'fleet:node:' .. node, 'vram') or 0)
local best, rank, class
-- Whether the job's profile has run out of memory on a card like this since it was enqueued. Then it moves to the
-- queue for larger cards, and nobody has tried in vain.
local function too_small(id, profile, queue)
  local limit = card > 0 and profile and tonumber(redis.call('GET', 'fleet:oom:' .. profile) or 0) or 0
  if limit < card or limit <= above_of(queue) then return false end
  local moved, f = with_above(queue, limit), redis.call('HMGET', jobkey(id), 'rank', 'deadline')
  dequeue(id, queue)
  redis.call('HSET', jobkey(id), 'placement', moved)
  enqueue(id, moved, f[1], true)
  if f[2] then redis.call('ZADD', 'fleet:deadlines', f[2], id) end
  redis.call('PUBLISH', 'fleet:wake', 'job ' .. moved)
  return true
end

for i = 7, #ARGV do
  local heads = redis.call('ZRANGE', 'fleet:queue:' .. ARGV[i], 0, tonumber(ARGV[6]) - 1, 'WITHSCORES')
  for j = 1, #heads, 2 do
    local f = fields(jobkey(heads[j]), 'status', 'deadline', 'profile')
    if f[1] ~= 'queued' then
      dequeue(heads[j], ARGV[i])  -- a leftover: whatever ended the job has moved on
    elseif not (f[2] and tonumber(f[2]) <= at) and not too_small(heads[j], f[3], ARGV[i]) then
      if not rank or tonumber(heads[j + 1]) < rank then
        best, rank, class = heads[j], tonumber(heads[j + 1]), ARGV[i]
      end
      break
    end
  end
end
if not best then return { 'empty' } end

local key = jobkey(best)
dequeue(best, class)
redis.call('HSET', key, 'status', 'running', 'run', run, 'node', node)
redis.call('HSETNX', key, 'started', num(at))
redis.call('HDEL', key, 'progress')
redis.call('SET', 'fleet:lease:' .. node, run)
redis.call('SADD', 'fleet:node:' .. node .. ':runs', run)
redis.call('ZADD', 'fleet:runs', num(at + ttl), run)
redis.call('HSET', 'fleet:run:' .. run, 'job', best, 'node', node, 'token', token, 'dispatcher', who,
  'phase', 'claimed', 'since', num(at), 'schema', SCHEMA)
local rq = rqkey(best)
redis.call('HSET', rq, 'status', 'started', 'started_at', iso(at), 'last_heartbeat', iso(at), 'worker_name', who)
redis.call('PERSIST', rq)
local member = best .. ':' .. run
redis.call('ZADD', 'rq:wip:' .. QUEUE, FAR, member)
redis.call('HSET', 'rq:execution:' .. member, 'id', run, 'created_at', num(at), 'last_heartbeat', num(at),
  'worker_name', who)
redis.call('ZADD', 'rq:executions:' .. best, FAR, run)
publish_status(best, 'running', run, node)
local behind = 0
for i = 7, #ARGV do behind = behind + redis.call('ZCARD', 'fleet:queue:' .. ARGV[i]) end
return { 'ok', best, redis.call('HGETALL', key), graph_of(best),
  redis.call('HGET', rq, 'data'), behind }
