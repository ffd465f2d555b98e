-- Which waiting jobs may start on a node now, whatever the rules of choosing say of them.

-- Whether a job's profile has run out of memory on a card like the node's since it was enqueued. Then it moves to the
-- queue for larger cards, without a useless attempt.
local function start_too_small(start, id, profile, queue)
  local limit = start.card > 0 and profile and tonumber(redis.call('GET', oom_key(profile)) or 0) or 0
  if limit < start.card or limit <= above_of(queue) then return false end
  local moved, f = with_above(queue, limit), redis.call('HMGET', job_key(id), 'rank', 'deadline')
  dequeue(id, queue)
  redis.call('HSET', job_key(id), 'placement', moved)
  enqueue(id, f[1], start.at, {})
  if f[2] then redis.call('ZADD', deadlines_key, f[2], id) end
  wake_for(id, moved)
  return true
end

-- Whether a job leaves the node to others for a moment, because another node has its graph's results.  Of one editor's
-- jobs only the first does, so that a batch does not line up behind one node.
local IDLE_S = 0.25  -- the same for a job that saves little, if that node is free: it takes a moment to get it
local function start_leaves_it(start, whose, patience, created)
  if not whose or start.waiting[whose] then return false end
  local at, there, till = start.at, awaited(whose, patience, created)
  if not there or there == start.node or start.unawaited[there] then return false end
  local soon = (tonumber(created or '') or 0) + math.min(tonumber(patience) or 0, IDLE_S)
  if till <= at and (soon <= at or holder_of(there)) then return false end
  start.waiting[whose] = true
  start.held = start.held or { 'waits', there, num(math.max(0, till - at)) }
  return true
end

-- Whether a job leaves the node to the editor whose results it has, because it has only just come, and another node may
-- be left this moment: who sends one job after the other sends it when the one before has ended.
local SPARED_S = 0.25
local function start_spares(start, whose, created)
  if not args.spare or not start.results or whose == start.results then return false end
  local left = (tonumber(created or '') or 0) + SPARED_S - start.at
  if left <= 0 then return false end
  start.spared = { 'spared', num(math.min(left, start.spared and tonumber(start.spared[2]) or left)) }
  return true
end

-- Whether a job waits a moment for others that can be merged with it.
local function start_gathers(start, f)
  local left = merge_gathers_s(f, start.at)
  if left then start.gathering = { 'gathers', num(math.min(left, start.gathering and tonumber(start.gathering[2]) or left)) } end
  return left ~= nil
end

local function start_allowed(start, id, f, placement)
  if f.status ~= 'queued' or f.follows then
    dequeue(id, placement)  -- a leftover: whatever ended the job has moved on
    return false
  end
  if (tonumber(f.deadline or '') or math.huge) <= start.at then
    sched_remove(id)  -- it hides others no more until it ends (overdue.lua)
    return false
  end
  local room, by = bounds_room(f.bounds)
  if room <= 0 then
    start.bounded[f.owner] = by
    return false
  end
  if start_too_small(start, id, f.profile, placement) or start_leaves_it(start, f.editor, f.patience, f.created)
    or start_spares(start, f.editor, f.created) or start_gathers(start, f) then
    return false
  end
  start.found = true
  return true
end

-- What sched_choose gets for a node, from the script's arguments as a claim has them; card (bytes) and results (an editor's KEY): as
-- the node's record says.  And what came of asking whether jobs may start: found (one could be taken), held and spared (answers
-- of a claim, if jobs leave the node to others), gathering (the same, if they wait for others to be merged with).
local function look_for(node, at, card, results)
  local asked, start = {}, { node = node, at = at, card = tonumber(card or 0), results = results, unawaited = {}, waiting = {}, bounded = {},
    found = false }
  for _, name in ipairs(args.unawaited or {}) do start.unawaited[name] = true end
  return { node = node, pool = args.pool, queues = args.placements, peers = args.peers,
    able = args.able, unable = args.unable, bounded = start.bounded, speed = args.speed, ram = args.ram, patience = args.patience_s, at = at,
    fields = { 'status', 'deadline', 'profile', 'editor', 'patience', 'created', 'merge', 'merge_most', 'merge_until', 'follows' },
    may = function(id, f, placement)
      if asked[id] == nil then asked[id] = start_allowed(start, id, f, placement) end  -- a look may come to a job more than once
      return asked[id]
    end }, start
end
