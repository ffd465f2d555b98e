-- An agent's heartbeat.  args: host, instance, central (bool), ttl_s (of what is shown), seat_ttl_s,
--       reports [{name, word, why, boot, freed, gpu, seat, facts, address, runs}], seen [RUN], leaving [NODE],
--       deleted [CLEANUP], most_hosts (that are kept), store (an id for an empty one).  ARGV: the record to show.
-- Returns 'taken' (another agent speaks for the host), 'full' (too many hosts) or {nodes {JSON, cordoned, reason, gpu, device,
--          speed, speeds}, explained runs, nodes that no run needs, cleanup, nodes to be restarted, others' nodes on the same
--          GPUs {name, seat, seconds since}, the store's id}
local host, ttl_s = args.host, args.ttl_s
if not admitted(host, args.instance) then return 'taken' end
if not redis.call('ZSCORE', hosts_key, host) and redis.call('ZCARD', hosts_key) >= args.most_hosts then
  -- Make room: forget hosts that are gone and have left no node.
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', hosts_key, '-inf', num(now() - args.seat_ttl_s))) do
    if redis.call('EXISTS', host_nodes_key(other)) == 0 then redis.call('ZREM', hosts_key, other) end
  end
  if redis.call('ZCARD', hosts_key) >= args.most_hosts then return 'full' end
end
redis.call('SET', host_key(host), ARGV[2], 'EX', ttl_s)
redis.call('ZADD', hosts_key, num(now()), host)
redis.call('ZREMRANGEBYSCORE', hosts_key, '-inf', num(now() - 604800))  -- what has not been heard of for a week

local mine, gpus = {}, {}
for _, report in ipairs(args.reports) do
  mine[report.name] = true
  local key = node_key(report.name)
  if redis.call('HEXISTS', nodes_key, report.name) == 1 then
    local owner = redis.call('HGET', key, 'host')
    if owner == host or (args.central and not owner) then
      redis.call('HSET', key, 'agent_word', report.word, 'agent_why', report.why)
      redis.call('SET', report_key(report.name), report.facts, 'EX', ttl_s)
      if report.freed ~= '' and redis.call('HGET', key, 'freed') ~= report.freed then
        redis.call('HSET', key, 'freed', report.freed)
        unloaded(report.name)
      end
      for _, run in ipairs(report.runs) do shown_at(run, report.name, report.address) end
      if report.gpu ~= '' then
        gpus[report.gpu] = true
        redis.call('HSET', gpu_key(report.gpu), report.name, num(now()) .. ' ' .. report.seat)
        redis.call('EXPIRE', gpu_key(report.gpu), args.seat_ttl_s)
      end
      if report.boot ~= '' then
        local boot = redis.call('HGET', key, 'boot')
        if boot ~= report.boot then redis.call('HSET', key, 'boot', report.boot) end
        if boot and boot ~= report.boot then node_started(report.name) end
      end
    end
  end
end

for _, cleanup in ipairs(args.deleted) do redis.call('ZREM', cleanup_key(host), cleanup) end

local nodes, explained, clear, restart = {}, {}, {}, {}
for _, name in ipairs(redis.call('SMEMBERS', host_nodes_key(host))) do
  local f = redis.call('HMGET', node_key(name), 'host', 'cordoned', 'cordon_reason',
    'gpu', 'device', 'speed', 'speeds', 'restart')
  local record = redis.call('HGET', nodes_key, name)
  if record and f[1] == host then
    nodes[#nodes + 1] = { record, f[2] or '0', f[3] or '', f[4] or '', f[5] or '', f[6] or '', f[7] or '' }
    if f[8] then restart[#restart + 1] = name end
    retire_staged(name, now())
  else
    redis.call('SREM', host_nodes_key(host), name)
  end
end
for _, run in ipairs(args.seen) do
  if redis.call('EXISTS', run_key(run)) == 1 then explained[#explained + 1] = run end
end
for _, name in ipairs(args.leaving) do
  if redis.call('EXISTS', node_runs_key(name)) == 0 then clear[#clear + 1] = name end
end
local neighbours = {}
for gpu in pairs(gpus) do
  local seats = redis.call('HGETALL', gpu_key(gpu))
  for i = 1, #seats, 2 do
    local name = seats[i]
    local at, seat = seats[i + 1]:match('^(%S+) (.*)$')
    local age = now() - tonumber(at)
    if age > args.seat_ttl_s or redis.call('HEXISTS', nodes_key, name) == 0 then
      redis.call('HDEL', gpu_key(gpu), name)
    elseif not mine[name] then
      neighbours[#neighbours + 1] = { name, seat, num(age) }
    end
  end
end
return { nodes, explained, clear, redis.call('ZRANGE', cleanup_key(host), 0, 199), restart, neighbours,
  store_id(args.store) }
