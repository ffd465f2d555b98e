-- Choose a job of some placement classes for a node that HAProxy granted.
-- args: node, run, token, dispatcher, ttl_s, placements, pool, peers (how many nodes serve the sought class), speed, vram and ram
--       (bytes, 0 if unknown), patience_s (for how long a job may be passed over), unawaited (nodes that no job waits for),
--       able or unable (nodes that can or can't run a class, by class, where not all nodes of its pools can), spare (whether the node is kept for the editor whose results it has, while a job has only just come).
-- Returns {'schema', layout} | {'removed'|'cordoned'|'empty'} | {'leased', run} | {'waits', node, seconds} | {'spared', seconds}
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

local at = now()
local card = tonumber(about[2] or 0)
-- Whether the job's profile has run out of memory on a card like this since it was enqueued. Then it moves to the
-- queue for larger cards, without a useless attempt.
local function too_small(id, profile, queue)
  local limit = card > 0 and profile and tonumber(redis.call('GET', oom_key(profile)) or 0) or 0
  if limit < card or limit <= above_of(queue) then return false end
  local moved, f = with_above(queue, limit), redis.call('HMGET', job_key(id), 'rank', 'deadline')
  dequeue(id, queue)
  redis.call('HSET', job_key(id), 'placement', moved)
  enqueue(id, f[1], at, {})
  if f[2] then redis.call('ZADD', deadlines_key, f[2], id) end
  wake_for(id, moved)
  return true
end

-- Whether a job leaves this node to others for a moment, because another node has its graph's results.  Of one editor's
-- jobs only the first does, so that a batch does not line up behind one node.
local IDLE_S = 0.25  -- the same for a job that saves little, if that node is free: it takes a moment to get it
local unawaited, waiting, held = {}, {}, nil
for _, name in ipairs(args.unawaited) do unawaited[name] = true end
local function leaves_it(whose, patience, created)
  if not whose or waiting[whose] then return false end
  local there, till = awaited(whose, patience, created)
  if not there or there == node or unawaited[there] then return false end
  local soon = (tonumber(created or '') or 0) + math.min(tonumber(patience) or 0, IDLE_S)
  if till <= at and (soon <= at or holder_of(there)) then return false end
  waiting[whose] = true
  held = held or { 'waits', there, num(math.max(0, till - at)) }
  return true
end

-- Whether a job leaves this node to the editor whose results it has, because it has only just come, and another node may
-- be left this moment: who sends one job after the other sends it when the one before has ended.
local SPARED_S = 0.25
local spared
local function spares(whose, created)
  if not args.spare or not about[3] or whose == about[3] then return false end
  local left = (tonumber(created or '') or 0) + SPARED_S - at
  if left <= 0 then return false end
  spared = { 'spared', num(math.min(left, spared and tonumber(spared[2]) or left)) }
  return true
end

despite_full()

local found = false  -- whether there is a job that the node could take
local function allowed(id, f, placement)
  if f.status ~= 'queued' then
    dequeue(id, placement)  -- a leftover: whatever ended the job has moved on
    return false
  end
  if (tonumber(f.deadline or '') or math.huge) <= at or too_small(id, f.profile, placement)
    or leaves_it(f.editor, f.patience, f.created) or spares(f.editor, f.created) then
    return false
  end
  found = true
  return true
end

local asked = {}  -- a look may come to a job more than once
local look = { node = node, pool = args.pool, queues = args.placements, peers = args.peers,
  able = args.able, unable = args.unable, speed = args.speed, vram = args.vram, ram = args.ram, patience = args.patience_s, at = at,
  fields = { 'status', 'deadline', 'profile', 'editor', 'patience', 'created' },
  may = function(id, f, placement)
    if asked[id] == nil then asked[id] = allowed(id, f, placement) end
    return asked[id]
  end }
local choice, again_s, idle = sched_choose(look)
if not choice then
  if held or spared then return held or spared end
  if found then return { 'nothing', again_s and num(again_s) or '', idle or '' } end
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
