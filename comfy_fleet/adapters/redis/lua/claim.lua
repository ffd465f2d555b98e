-- Choose a job of some placement classes for a node that HAProxy granted.
-- args: node, run, token, dispatcher, ttl_s, placements, pool, peers (how many nodes serve the sought class), speed, ram
--       (bytes, 0 if unknown), patience_s (for how long a job may be passed over), unawaited (nodes that no job waits for),
--       ready (whether the lease was held ready since before the job came), able or unable (nodes that can or can't run a class, by
--       class, where not all nodes of its pools can), spare (whether the node is kept for the editor whose results it has, while a job has only just come).
-- Returns {'schema', layout} | {'removed'|'cordoned'|'unready'|'empty'} | {'leased', run} | {'waits', node, seconds} | {'spared', seconds}
--       | {'nothing', seconds until it is worth another look or '', an idle node that has the models or ''}
--       | {'ok', job, record, graph, RQ data, jobs that wait behind it, who listens to its frames, extra data or '', rule,
--          seconds that its models will take to load}
local other = other_schema()
if other then return other end
local node, run = args.node, args.run
if redis.call('HEXISTS', nodes_key, node) == 0 then return { 'removed' } end
local about = redis.call('HMGET', node_key(node), 'cordoned', 'vram', 'results')
if about[1] == '1' then return { 'cordoned' } end
local holder = holder_of(node)
if holder then return { 'leased', holder } end

despite_full()

local at = now()
if args.ready and not is_ready(node, run, at) then return { 'unready' } end
local look, start = look_for(node, at, about[2], about[3])
local choice, again_s, idle = sched_choose(look)
if not choice then
  if start.held or start.spared then return start.held or start.spared end
  if start.found then return { 'nothing', again_s and num(again_s) or '', idle or '' } end
  for _, placement in ipairs(args.placements) do  -- the count of jobs whose records were lost is put right
    if redis.call('EXISTS', sched_owners_key(placement)) == 0 then sched_call('HDEL', sched_count_key, placement) end
  end
  return { 'empty' }
end

local best = choice.id
local key = job_key(best)
unqueue(best)
redis.call('HSET', key, 'status', 'running', 'run', run, 'node', node)
redis.call('HSETNX', key, 'started', num(at))
redis.call('HDEL', key, 'progress')
redis.call('SET', lease_key(node), run)
if args.ready then redis.call('HDEL', ready_leases_key, node) end
redis.call('SADD', node_runs_key(node), run)
redis.call('ZADD', runs_key, num(at + args.ttl_s), run)
redis.call('HSET', run_key(run), 'job', best, 'node', node, 'token', args.token, 'dispatcher', args.dispatcher,
  'phase', 'claimed', 'since', num(at), 'schema', SCHEMA, 'rq_beat', num(at))
sched_start(look, choice, run)
local editor = redis.call('HGET', key, 'editor')
if editor then
  redis.call('HSET', node_key(node), 'results', editor)
elseif about[3] then
  redis.call('HDEL', node_key(node), 'results')
end
local data = rq_start(best, run, args.dispatcher, at)
publish_status(best, 'running', run, node)
local behind = 0
for _, count in ipairs(sched_call('HMGET', sched_count_key, unpack(args.placements))) do
  behind = behind + (tonumber(count or '') or 0)
end
local extra = redis.pcall('GET', job_extra_key(best))
return { 'ok', best, redis.call('HGETALL', key), graph_of(best), data, behind, listeners(best),
  type(extra) == 'string' and extra or '', choice.rule, num(choice.load_s) }
