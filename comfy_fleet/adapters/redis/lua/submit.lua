-- Write and enqueue a job; all or nothing.
-- args: id, owner, graph_hash, depth_limit, ageing_s, priority, placement, expires_in_s, deadline_s, assets (ids, between
--       blanks), rq_data, rq_description, idempotency {scope, hash, fingerprint, replay (bool)}, fields (names),
--       prompt_hash (of the id that its client chose), number, front (bool), model_set {key, files (as JSON)},
--       able (some nodes that can run it), weight (its owner's share), merge {key, window_s (for which it waits for others)}.
-- ARGV: graph, secret or '', extra data or '', then the record's value for each of the fields.
-- Returns {'schema', layout} | {'ok', created, place in the queue, number} | {'again'} | {'full', depth} | {'used', job} | {'replay', job}
local MOST_NUMBERS = 250  -- of the owner's jobs that are compared with a number
local STEP_S = 0.001  -- from one rank to the next

local other = other_schema()
if other then return other end
local id, idem = args.id, args.idempotency
local idem_key = idem and idempotency_key(idem.scope, idem.hash)
if idem then
  local seen = redis.call('GET', idem_key)
  if seen then
    local job, print = string.match(seen, '^(%S+) (%S*)$')
    if job == id then return { 'again' } end  -- our own write; the client library asked twice
    return { (idem.replay and print == idem.fingerprint) and 'replay' or 'used', job }
  end
end
local key = job_key(id)
if redis.call('EXISTS', key) == 1 then return { 'again' } end
local depth = sched_call('ZCARD', queued_key)
if depth >= args.depth_limit then return { 'full', tostring(depth) } end

local at = now()
local rank = at - args.priority * args.ageing_s
local count = redis.call('HINCRBY', numbers_key, args.owner, 1)
local number = args.number or (args.front and -count or count)
local live = live_key(args.owner)
-- Of some of the owner's jobs that wait in the same queue for longer, or with a higher priority, the lowest or the highest rank.
local function rank_of(ids, least)
  local found
  for _, other in ipairs(ids) do
    local f = fields(job_key(other), 'status', 'rank', 'placement')
    local its = tonumber(f[2] or '')
    if f[1] == 'queued' and f[3] == args.placement and its and its <= rank
      and (not found or (least and its < found) or (not least and its > found)) then
      found = its
    end
  end
  return found
end
if args.number or args.front then
  -- Just before those that have higher numbers, and behind the others if there is room.
  local next_rank = rank_of(redis.call('ZRANGEBYSCORE', live, '(' .. number, '+inf', 'LIMIT', 0, MOST_NUMBERS), true)
  local before = next_rank and rank_of(redis.call('ZREVRANGEBYSCORE', live, number, '-inf', 'LIMIT', 0, MOST_NUMBERS), false)
  if next_rank then
    rank = next_rank - STEP_S
    if before and before < next_rank then rank = math.max(rank, (before + next_rank) / 2) end
  end
end
rank = num(rank)
local record = { 'HSET', key, 'owner', args.owner, 'status', 'queued', 'created', num(at), 'graph', args.graph_hash,
  'priority', args.priority, 'placement', args.placement, 'expires_in', args.expires_in_s,
  'expires', num(at + args.expires_in_s), 'attempt', 0, 'cancel', 0, 'assets', args.assets, 'rank', rank, 'number', string.format('%.17g', number) }
for i, name in ipairs(args.fields) do
  record[#record + 1] = name
  record[#record + 1] = ARGV[4 + i]
end
if args.deadline_s then
  local deadline = num(at + args.deadline_s)
  record[#record + 1] = 'deadline'
  record[#record + 1] = deadline
  redis.call('ZADD', deadlines_key, deadline, id)
end
if ARGV[3] ~= '' then
  redis.call('SET', job_secret_key(id), ARGV[3])
  record[#record + 1] = 'has_secret'
  record[#record + 1] = 1
end
if ARGV[4] ~= '' then
  redis.call('SET', job_extra_key(id), ARGV[4])
  record[#record + 1] = 'has_extra'
  record[#record + 1] = 1
end
if args.merge and merge_add(args.merge.key, id, rank, args.merge.window_s) then
  record[#record + 1] = 'merge_until'
  record[#record + 1] = num(at + math.min(args.merge.window_s, (args.deadline_s or math.huge) / 2))
end
redis.call(unpack(record))
if args.model_set then
  redis.call('SET', sched_set_key(args.model_set.key), args.model_set.files, 'EX',
    math.max(2592000, math.ceil(2 * args.expires_in_s)))
end
if args.prompt_hash then redis.call('SET', prompt_key(args.owner, args.prompt_hash), id) end
redis.call('ZADD', live, number, id)
list_job(id)
redis.call('SET', graph_key(args.graph_hash), ARGV[2], 'NX')
redis.call('HINCRBY', graphs_key, args.graph_hash, 1)
for asset in string.gmatch(args.assets, '%S+') do redis.call('SADD', asset_jobs_key(asset), id) end
redis.call('ZADD', jobs_key, num(at), id)
redis.call('ZADD', jobs_of_key(args.owner), num(at), id)
if idem then redis.call('SET', idem_key, id .. ' ' .. idem.fingerprint, 'EX', 86400) end
rq_submit(id, args.rq_data, args.rq_description, at)
sched_weigh(args.owner, args.weight)
enqueue(id, rank, at, args.able or {})
wake_for(id, args.placement)
publish_owner(id, 'queued', nil)
return { 'ok', num(at), place_of(id), string.format('%.17g', number) }
