-- Choose a job of some placement classes for a node that HAProxy granted.
-- args: node, run, token, dispatcher, line (its LifeLine), ttl_s, placements, pool, peers (how many nodes serve the sought class), speed, ram
--       (bytes, 0 if unknown), patience_s (for how long a job may be passed over), unawaited (nodes that no job waits for),
--       ready (whether the lease was held ready since before the job came), able or unable (nodes that can or can't run a class, by
--       class, where not all nodes of its pools can), spare (whether the node is kept for the editor whose results it has, while a job has only just come),
--       runs (ids of runs for jobs that are merged with it).
-- Returns {'schema', layout} | {'removed'|'cordoned'|'unready'|'empty'} | {'leased', run} | {'waits', node, seconds} | {'spared', seconds}
--       | {'failover', seconds (for which Redis' failover keeps everything from being claimed)}
--       | {'gathers', seconds (that the only jobs wait for others to be merged with)}
--       | {'nothing', seconds until it is worth another look or '', an idle node that has the models or ''}
--       | {'ok', job, record, graph, RQ data, jobs that wait behind it, who listens to its frames, extra data or '', rule,
--          seconds that its models will take to load, those that run with it: {{job, run, record, graph, RQ data, who listens,
--          extra data or ''} ...}, how they are merged or ''}
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
local pause = failover_pause(at, args.ttl_s)
if pause then return { 'failover', num(pause) } end
if args.ready and not is_ready(node, run, at) then return { 'unready' } end
local look, start = look_for(node, at, about[2], about[3])
local choice, again_s, idle = sched_choose(look)
if not choice then
  local waits = start.held or start.spared or start.gathering
  if waits then return waits end
  if start.found then return { 'nothing', again_s and num(again_s) or '', idle or '' } end
  for _, placement in ipairs(args.placements) do  -- the count of jobs whose records were lost is put right
    if redis.call('EXISTS', sched_owners_key(placement), sched_owners_key(sched_group(placement))) == 0 then sched_call('HDEL', sched_count_key, placement) end
  end
  return { 'empty' }
end

local best = choice.id
local key = job_key(best)
unqueue(best)
redis.call('SET', lease_key(node), run)
redis.pcall('HDEL', ready_leases_key, node)  -- also of a holder that is gone: this run's tunnel is not to be cut in its place
-- Those that run with it: each has a run of its own, with which it is charged its part of the time.
local f = fields(key, 'editor', 'merge', 'merge_most', 'merge_batch', 'set', 'bounds')
local most = math.min((tonumber(f[3] or '') or 1) - 1, #(args.runs or {}), bounds_room(f[6]) - 1)
local others = f[2] and merge_take(f[2], best, choice.placement, f[5], f[6], most, at) or {}
local parts = #others + 1
local seed, count = string.match(f[4] or '', '^(%d+) (%d+)$')
-- A version that knows nothing of merged prompts must not take such a run over: it would take others' results for the job's.
local function note_merged(id, of, part)
  redis.call('HSET', run_key(of), 'merged', string.match(f[2], '^%a+'), 'parts', parts, 'schema', SCHEMA + 1)
  if seed then
    redis.call('HSET', job_key(id), 'batch', string.format('%s %d %d %d', seed, part * count, count, parts * count))
  end
end
-- A job runs on this node from now on.  part: its place among those of one prompt, from 0; false: it is alone.
-- Returns {record, graph, who listens, extra data or ''}.
local function begin_run(id, run, token, part)
  local key = job_key(id)
  redis.call('HSET', key, 'status', 'running', 'run', run, 'node', node, 'claimed', num(at))
  local first = redis.call('HSETNX', key, 'started', num(at)) == 1
  redis.call('HDEL', key, 'progress')
  redis.call('SADD', node_runs_key(node), run)
  redis.call('ZADD', runs_key, num(at + args.ttl_s), run)
  redis.call('HSET', run_key(run), 'job', id, 'node', node, 'token', token, 'dispatcher', args.dispatcher,
    'line', args.line or '', 'phase', 'claimed', 'since', num(at), 'schema', SCHEMA, 'rq_beat', num(at))
  if part then note_merged(id, run, part) end
  rq_start(id, run, args.dispatcher, at)
  publish_status(id, 'running', run, node)
  local more = fields(key, 'flight', 'webhook', 'bounds')
  if more[3] then bounds_begin(more[3], run) end
  if more[1] then flight_status(more[1], 'running', node, at) end
  if first and more[2] then webhook_tell(id, 'started', at) end
  local extra = redis.pcall('GET', job_extra_key(id))
  return { redis.call('HGETALL', key), graph_of(id), listeners(id), type(extra) == 'string' and extra or '' }
end

local started = begin_run(best, run, args.token, parts > 1 and 0)
sched_start(look, choice, run)
local companions = {}
for part, id in ipairs(others) do
  local other = args.runs[part]
  unqueue(id)
  sched_join(choice, id, other)
  companions[part] = { id, other, unpack(begin_run(id, other, args.token .. '-' .. part, part)) }
end
if f[1] then
  redis.call('HSET', node_key(node), 'results', f[1])
elseif about[3] then
  redis.call('HDEL', node_key(node), 'results')
end
local behind = 0
for _, waits in ipairs(sched_call('HMGET', sched_count_key, unpack(args.placements))) do
  behind = behind + (tonumber(waits or '') or 0)
end
return { 'ok', best, started[1], started[2], behind, started[3], started[4], choice.rule, num(choice.load_s), companions,
  parts > 1 and string.match(f[2], '^%a+') or '' }
