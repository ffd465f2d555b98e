-- Transfer expired run leases: a new token, the same run, the same attempt.
-- Runs that a newer version has begun are left to it.
-- ARGV: dispatcher, ttl, then one token for each run to take at most
-- Returns {{run, token, job, node, phase, manifest, record, graph} ...}
local at, out = now(), {}
local expired = redis.call('ZRANGEBYSCORE', 'fleet:runs', '-inf', num(at), 'LIMIT', 0, #ARGV - 2)
for i, run in ipairs(expired) do
  local token = ARGV[2 + i]
  local key = 'fleet:run:' .. run
  local r = fields(key, 'job', 'node', 'phase', 'manifest', 'schema')
  if (tonumber(r[5] or 1) or 1) > SCHEMA then
    -- Its own version ends it; what stands in its job's record may be strange to us.
  elseif not r[1] then
    redis.call('ZREM', 'fleet:runs', run)
  elseif redis.call('TYPE', jobkey(r[1])).ok ~= 'hash' then
    drop_run(run, r[1], r[2])  -- nobody could end it, and it would hold its node for ever
    discard(r[1], at)
  else
    redis.call('HSET', key, 'token', token, 'dispatcher', ARGV[1], 'schema', SCHEMA)
    redis.call('HSET', rqkey(r[1]), 'worker_name', ARGV[1])
    redis.call('ZADD', 'fleet:runs', num(at + tonumber(ARGV[2])), run)
    out[#out + 1] = { run, token, r[1], r[2], r[3], r[4] or '[]', redis.call('HGETALL', jobkey(r[1])),
      graph_of(r[1]) }
  end
end
return out
