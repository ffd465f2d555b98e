-- Take the best job of some placement classes for a node that HAProxy granted.
-- args: node, run, token, dispatcher, ttl_s, placements, peek (jobs looked at in each class).
-- Returns {'schema', layout} | {'removed'|'cordoned'|'empty'} | {'leased', run} | {'ok', job, record, graph, RQ data, jobs that wait behind it, who listens to its frames, extra data or ''}
local other = other_schema()
if other then return other end
local node, run = args.node, args.run
if redis.call('HEXISTS', nodes_key, node) == 0 then return { 'removed' } end
local about = redis.call('HMGET', node_key(node), 'cordoned', 'vram')
if about[1] == '1' then return { 'cordoned' } end
local holder = holder_of(node)
if holder then return { 'leased', holder } end

local at = now()
local card = tonumber(about[2] or 0)
local best, rank, class
-- Whether the job's profile has run out of memory on a card like this since it was enqueued. Then it moves to the
-- queue for larger cards, without a useless attempt.
local function too_small(id, profile, queue)
  local limit = card > 0 and profile and tonumber(redis.call('GET', oom_key(profile)) or 0) or 0
  if limit < card or limit <= above_of(queue) then return false end
  local moved, f = with_above(queue, limit), redis.call('HMGET', job_key(id), 'rank', 'deadline')
  dequeue(id, queue)
  redis.call('HSET', job_key(id), 'placement', moved)
  enqueue(id, moved, f[1], true)
  if f[2] then redis.call('ZADD', deadlines_key, f[2], id) end
  redis.call('PUBLISH', wake_key, 'job ' .. moved)
  return true
end

for _, placement in ipairs(args.placements) do
  local heads = redis.call('ZRANGE', queue_key(placement), 0, args.peek - 1, 'WITHSCORES')
  for j = 1, #heads, 2 do
    local f = fields(job_key(heads[j]), 'status', 'deadline', 'profile')
    if f[1] ~= 'queued' then
      dequeue(heads[j], placement)  -- a leftover: whatever ended the job has moved on
    elseif not (f[2] and tonumber(f[2]) <= at) and not too_small(heads[j], f[3], placement) then
      if not rank or tonumber(heads[j + 1]) < rank then
        best, rank, class = heads[j], tonumber(heads[j + 1]), placement
      end
      break
    end
  end
end
if not best then return { 'empty' } end

local key = job_key(best)
dequeue(best, class)
redis.call('HSET', key, 'status', 'running', 'run', run, 'node', node)
redis.call('HSETNX', key, 'started', num(at))
redis.call('HDEL', key, 'progress')
redis.call('SET', lease_key(node), run)
redis.call('SADD', node_runs_key(node), run)
redis.call('ZADD', runs_key, num(at + args.ttl_s), run)
redis.call('HSET', run_key(run), 'job', best, 'node', node, 'token', args.token, 'dispatcher', args.dispatcher,
  'phase', 'claimed', 'since', num(at), 'schema', SCHEMA, 'rq_beat', num(at))
local data = rq_start(best, run, args.dispatcher, at)
publish_status(best, 'running', run, node)
local behind = 0
for _, placement in ipairs(args.placements) do behind = behind + redis.call('ZCARD', queue_key(placement)) end
local extra = redis.pcall('GET', job_extra_key(best))
return { 'ok', best, redis.call('HGETALL', key), graph_of(best), data, behind, listeners(best),
  type(extra) == 'string' and extra or '' }
