-- An agent's heartbeat.  ARGV: host, ttl, record to show, then as JSON
--   {central, reports: [{name, word, why, boot, freed, gpu, seat, facts, address, runs}], seen: [RUN], leaving: [NODE],
--    deleted: [TRASH]}, then the seconds for which a seat is kept, the instance, an id for an empty store, and how many hosts are kept
-- Returns 'taken' (another agent speaks for the host), 'full' (too many hosts) or {nodes {JSON, cordoned, reason, gpu, device, speed, speeds}, explained runs, nodes that no run needs, trash,
--          nodes to be restarted, others' nodes on the same GPUs {name, seat, seconds since}, the store's id}
local host, ttl = ARGV[1], ARGV[2]
if not admitted(host, ARGV[6]) then return 'taken' end
local most = tonumber(ARGV[8])
if not redis.call('ZSCORE', 'fleet:hosts', host) and redis.call('ZCARD', 'fleet:hosts') >= most then
  -- Make room: forget those that are gone and have left no node.
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', 'fleet:hosts', '-inf', now() - tonumber(ARGV[5]))) do
    if redis.call('EXISTS', 'fleet:host:' .. other .. ':nodes') == 0 then redis.call('ZREM', 'fleet:hosts', other) end
  end
  if redis.call('ZCARD', 'fleet:hosts') >= most then return 'full' end
end
local beat = cjson.decode(ARGV[4])
redis.call('SET', 'fleet:host:' .. host, ARGV[3], 'EX', ttl)
redis.call('ZADD', 'fleet:hosts', num(now()), host)
redis.call('ZREMRANGEBYSCORE', 'fleet:hosts', '-inf', num(now() - 604800))  -- what has not been heard of for a week

local mine, gpus = {}, {}
for _, report in ipairs(beat.reports) do
  mine[report.name] = true
  local key = 'fleet:node:' .. report.name
  if redis.call('HEXISTS', 'fleet:nodes', report.name) == 1 then
    local owner = redis.call('HGET', key, 'host')
    if owner == host or (beat.central and not owner) then
      redis.call('HSET', key, 'agent_word', report.word, 'agent_why', report.why)
      redis.call('SET', 'fleet:report:' .. report.name, report.facts, 'EX', ttl)
      if report.freed ~= '' and redis.call('HGET', key, 'freed') ~= report.freed then
        redis.call('HSET', key, 'freed', report.freed)
        unloaded(report.name)
      end
      for _, run in ipairs(report.runs) do shown_at(run, report.name, report.address) end
      if report.gpu ~= '' then
        gpus[report.gpu] = true
        redis.call('HSET', 'fleet:gpu:' .. report.gpu, report.name, num(now()) .. ' ' .. report.seat)
        redis.call('EXPIRE', 'fleet:gpu:' .. report.gpu, ARGV[5])
      end
      if report.boot ~= '' then
        local boot = redis.call('HGET', key, 'boot')
        if boot ~= report.boot then redis.call('HSET', key, 'boot', report.boot) end
        if boot and boot ~= report.boot then node_started(report.name) end
      end
    end
  end
end

for _, trash in ipairs(beat.deleted) do redis.call('ZREM', 'fleet:trash:' .. host, trash) end

local nodes, explained, clear, restart = {}, {}, {}, {}
for _, name in ipairs(redis.call('SMEMBERS', 'fleet:host:' .. host .. ':nodes')) do
  local f = redis.call('HMGET', 'fleet:node:' .. name, 'host', 'cordoned', 'cordon_reason',
    'gpu', 'device', 'speed', 'speeds', 'restart')
  local record = redis.call('HGET', 'fleet:nodes', name)
  if record and f[1] == host then
    nodes[#nodes + 1] = { record, f[2] or '0', f[3] or '', f[4] or '', f[5] or '', f[6] or '', f[7] or '' }
    if f[8] then restart[#restart + 1] = name end
  else
    redis.call('SREM', 'fleet:host:' .. host .. ':nodes', name)
  end
end
for _, run in ipairs(beat.seen) do
  if redis.call('EXISTS', 'fleet:run:' .. run) == 1 then explained[#explained + 1] = run end
end
for _, name in ipairs(beat.leaving) do
  if redis.call('EXISTS', 'fleet:node:' .. name .. ':runs') == 0 then clear[#clear + 1] = name end
end
local neighbours = {}
for gpu in pairs(gpus) do
  local seats = redis.call('HGETALL', 'fleet:gpu:' .. gpu)
  for i = 1, #seats, 2 do
    local name = seats[i]
    local at, seat = seats[i + 1]:match('^(%S+) (.*)$')
    local age = now() - tonumber(at)
    if age > tonumber(ARGV[5]) or redis.call('HEXISTS', 'fleet:nodes', name) == 0 then
      redis.call('HDEL', 'fleet:gpu:' .. gpu, name)
    elseif not mine[name] then
      neighbours[#neighbours + 1] = { name, seat, num(age) }
    end
  end
end
return { nodes, explained, clear, redis.call('ZRANGE', 'fleet:trash:' .. host, 0, 199), restart, neighbours,
  store_id(ARGV[7]) }
