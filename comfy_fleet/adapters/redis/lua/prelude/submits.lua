-- How a job is written: submit.lua says what of.

-- blobs: the graph, what is secret, extra data, then the record's value for each of the fields.
local function submit_job(args, blobs)
  local ALWAYS = 10  -- a full queue still takes an owner's jobs up to this part of it, so that nobody keeps all others out
  local MOST_NUMBERS = 250  -- of the owner's jobs that are compared with a number
  local STEP_S = 0.001  -- from one rank to the next
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
  if args.rq.id and not inbox_awaits(args.rq.id, id) then return { 'ended' } end
  for asset in string.gmatch(args.assets, '%S+') do  -- a process that was stopped for long no longer holds it
    if redis.call('EXISTS', asset_key(asset)) == 0 then return { 'gone', asset } end
  end
  local at = now()
  local earlier = args.wanted and earlier_result(args.owner, args.wanted, at)
  -- Who follows must be able to run where the leader does, and for as long.
  local function flight_hash(result)
    return redis.sha1hex(result .. ' ' .. args.placement .. ' ' .. (args.timeout_s or '') .. (args.silence_s and ' ' .. args.silence_s or ''))
  end
  local open = args.wanted and not earlier and open_flight(args.owner, flight_hash(args.wanted.key))
  local depth = sched_call('ZCARD', queued_key) + redis.call('ZCARD', fetching_key)
  if args.depth_limit and not earlier and not open and depth >= args.depth_limit then
    local own = redis.call('ZCARD', listed_key(args.owner, 'pending'))
    if own >= math.floor(args.depth_limit / ALWAYS) or depth >= 2 * args.depth_limit then return { 'full', tostring(depth) } end
  end
  local over = args.quota and over_quota(args.quota, at, earlier and 0 or 1, 0)
  if over then return over end
  if args.quota then note_submit(args.quota, at) end
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
  local other_seed = args.wanted and args.wanted.any_seed and (earlier or open)
  if other_seed then args.graph_hash = other_seed.graph end
  local record = { 'HSET', key, 'owner', args.owner, 'status', 'queued', 'created', num(at), 'graph', args.graph_hash,
    'priority', args.priority, 'placement', args.placement, 'expires_in', args.expires_in_s,
    'expires', num(at + args.expires_in_s), 'attempt', 0, 'cancel', 0, 'assets', args.assets, 'rank', rank, 'number', string.format('%.17g', number) }
  for i, name in ipairs(args.fields) do
    record[#record + 1] = name
    record[#record + 1] = blobs[3 + i]
  end
  if args.deadline_s then
    local deadline = num(at + args.deadline_s)
    record[#record + 1] = 'deadline'
    record[#record + 1] = deadline
    if not earlier then redis.call('ZADD', deadlines_key, deadline, id) end
  end
  if blobs[2] ~= '' then
    redis.call('SET', job_secret_key(id), blobs[2])
    record[#record + 1] = 'has_secret'
    record[#record + 1] = 1
  end
  if blobs[3] ~= '' then
    redis.call('SET', job_extra_key(id), blobs[3])
    record[#record + 1] = 'has_extra'
    record[#record + 1] = 1
  end
  if args.merge and not earlier and not open and merge_add(args.merge.key, id, rank, args.merge.window_s) then
    record[#record + 1] = 'merge_until'
    record[#record + 1] = num(at + math.min(args.merge.window_s, (args.deadline_s or math.huge) / 2))
  end
  redis.call(unpack(record))
  if rq_wanted(args.rq.mirror) and not args.rq.id then rq_submit(id, args.rq.data, args.rq.description, at) else redis.call('HSETNX', key, 'rq', '') end
  if args.rq.id then inbox_accept(args.rq.id, id) end
  if args.model_set then
    redis.call('SET', sched_set_key(args.model_set.key), args.model_set.files, 'EX',
      math.max(2592000, math.ceil(2 * args.expires_in_s)))
  end
  if args.prompt_hash then redis.call('SET', prompt_key(args.owner, args.prompt_hash), id) end
  redis.call('ZADD', live, number, id)
  list_job(id)
  redis.call('SET', graph_key(args.graph_hash), blobs[1], 'NX')
  redis.call('HINCRBY', graphs_key, args.graph_hash, 1)
  for asset in string.gmatch(args.assets, '%S+') do redis.call('SADD', asset_jobs_key(asset), id) end
  redis.call('ZADD', jobs_key, num(at), id)
  redis.call('ZADD', jobs_of_key(args.owner), num(at), id)
  if args.webhook then redis.call('ZADD', webhook_jobs_key, num(at), id) end
  if args.stores then redis.call('ZADD', transfer_jobs_key, num(at), id) end
  if idem then redis.call('SET', idem_key, id .. ' ' .. idem.fingerprint, 'EX', 86400) end
  if other_seed then
    -- What it would compute is what the other one would: so are the keys of its result.
    local f = fields(job_key(other_seed.leader or other_seed.id), 'params', 'results')
    redis.call('HSET', key, 'params', f[1] or '{}', 'results', f[2] or '')
  end
  if open then
    publish_owner(id, 'queued', nil)
    join_flight(open, id, at)
    return { 'shared', redis.call('HGETALL', key), {} }
  end
  if earlier then
    publish_owner(id, 'queued', nil)
    local expires = at + args.expires_in_s
    give_outputs(earlier.shared, earlier.id, id, args.owner, expires, at, false)
    redis.call('HSET', key, 'started', num(at), 'cached', earlier.id)
    end_job(id, 'succeeded', '', '', at, earlier.progress or nil)
    redis.call('HSET', key, 'run', earlier.run or '', 'node', earlier.node or '')  -- who made it; its counts have it already
    earlier.entry.job = id  -- it stays as long as somebody asks for it
    redis.call('SET', result_key(args.owner, args.wanted.key), cjson.encode(earlier.entry), 'EX', math.max(1, math.ceil(args.expires_in_s)))
    return { 'shared', redis.call('HGETALL', key), redis.call('HGETALL', job_outputs_key(id)) }
  end
  for _, result in ipairs(args.kept or {}) do redis.call('SET', flight_of_key(args.owner, flight_hash(result)), id, 'EX', 86400) end
  sched_weigh(args.owner, args.weight)
  sched_weigh('/' .. args.tenant, args.tenant_weight)
  if args.fetches then
    begin_fetches(id, args.owner, args.fetches, at)
    publish_owner(id, 'queued', nil)
    return { 'ok', num(at), 0, string.format('%.17g', number) }
  end
  enqueue(id, rank, at, args.able or {})
  wake_for(id, args.placement)
  publish_owner(id, 'queued', nil)
  return { 'ok', num(at), place_of(id), string.format('%.17g', number) }
end
