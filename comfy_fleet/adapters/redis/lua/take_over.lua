-- Transfer run leases that have expired, or whose dispatcher is gone: a new token, the same run, the same attempt.
-- Runs that a newer version has begun are left to it.
-- args: dispatcher, line (its LifeLine), ttl_s, gone_s (after how long without a beat a closed life line counts; nil: never),
--       expired (whether expired leases are taken), tokens (one for each run to take at most).
-- Returns {{run, token, job, node, phase, manifest, record, graph, how it is merged or ''} ...}
despite_full()
local at, out = now(), {}
local pause = failover_pause(at, args.ttl_s)
if pause and pause > DEAF_S then return out end  -- dispatchers hear of it first, however their leases stand
local takes = args.expired and redis.call('ZRANGEBYSCORE', runs_key, '-inf', num(at), 'LIMIT', 0, #args.tokens) or {}
if args.gone_s and #takes < #args.tokens then
  local closed = { [''] = false, [args.line or ''] = false }
  local from, to = args.expired and '(' .. num(at) or '-inf', num(at + args.ttl_s - args.gone_s)
  for _, run in ipairs(redis.call('ZRANGEBYSCORE', runs_key, from, to)) do
    local line = fields(run_key(run), 'line')[1] or ''
    if closed[line] == nil then closed[line] = tonumber(redis.call('PUBSUB', 'NUMSUB', alive_key(line))[2]) == 0 end
    if closed[line] and #takes < #args.tokens then takes[#takes + 1] = run end
  end
end
for i, run in ipairs(takes) do
  local token = args.tokens[i]
  local key = run_key(run)
  local r = fields(key, 'job', 'node', 'phase', 'manifest', 'schema', 'merged')
  local schema = SCHEMA + (r[6] and 1 or 0)  -- as claim.lua says it
  if (tonumber(r[5] or 1) or 1) > schema then
    -- Its own version ends it; its job's record may have unknown content.
  elseif not r[1] then
    redis.call('ZREM', runs_key, run)
  elseif redis.call('TYPE', job_key(r[1])).ok ~= 'hash' then
    drop_run(run, r[1], r[2])  -- nobody could end it, and it would hold its node for ever
    discard(r[1], at)
  else
    redis.call('HSET', key, 'token', token, 'dispatcher', args.dispatcher, 'line', args.line or '', 'schema', schema)
    rq_take_over(r[1], args.dispatcher)
    redis.call('ZADD', runs_key, num(at + args.ttl_s), run)
    out[#out + 1] = { run, token, r[1], r[2], r[3], r[4] or '[]', redis.call('HGETALL', job_key(r[1])),
      graph_of(r[1]), r[6] or '' }
  end
end
return out
