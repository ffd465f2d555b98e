-- Write and enqueue a job; all or nothing.
-- args: id, owner, graph_hash, depth_limit, ageing_s, priority, placement, expires_in_s, deadline_s, assets (ids, between
--       blanks), rq_data, rq_description, idempotency {scope, hash, fingerprint, replay (bool)}, fields (names),
--       prompt_hash (of the id that its client chose), number, front (bool), model_set {key, files (as JSON)}.
-- ARGV: graph, secret or '', extra data or '', then the record's value for each of the fields.
-- Returns {'schema', layout} | {'ok', created, place in the queue, number} | {'again'} | {'full', depth} | {'used', job} | {'replay', job}
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
local depth = rq_depth()
if depth >= args.depth_limit then return { 'full', tostring(depth) } end

local at = now()
local rank = num(at - args.priority * args.ageing_s)
local count = redis.call('HINCRBY', numbers_key, args.owner, 1)
local number = args.number or (args.front and -count or count)
local live = live_key(args.owner)
if args.number or args.front then
  -- Before those of the owner's own jobs in the same queue that have higher numbers: each of them takes the place of the
  -- next, so that nobody else's moves.
  local behind = {}
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', live, '(' .. number, '+inf', 'LIMIT', 0, 1000)) do
    local f = fields(job_key(other), 'status', 'rank', 'placement')
    local its = tonumber(f[2] or '')
    if f[1] == 'queued' and f[3] == args.placement and its and its <= tonumber(rank) then
      behind[#behind + 1] = { id = other, rank = f[2] }
    end
  end
  table.sort(behind, function(a, b) return tonumber(a.rank) < tonumber(b.rank) end)
  for i = #behind, 1, -1 do
    local one, its = behind[i], behind[i].rank
    redis.call('HSET', job_key(one.id), 'rank', rank)
    redis.call('ZADD', queue_key(args.placement), 'XX', rank, one.id)
    rank = its
  end
end
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
enqueue(id, args.placement, rank, false)
redis.call('PUBLISH', wake_key, 'job ' .. args.placement)
publish_owner(id, 'queued', nil)
return { 'ok', num(at), place_of(id, args.placement), string.format('%.17g', number) }
