-- An agent's heartbeat.  ARGV: host, ttl, record to show, then as JSON
--   {central, reports: [{name, word, why, boot, freed, facts}], seen: [RUN], leaving: [NODE], deleted: [TRASH]}
-- Returns {nodes {JSON, cordoned, reason, gpu, device, speed, speeds}, explained runs, nodes that no run needs, trash,
--          nodes to be restarted}
local host, ttl = ARGV[1], ARGV[2]
local beat = cjson.decode(ARGV[4])
redis.call('SET', 'fleet:host:' .. host, ARGV[3], 'EX', ttl)
redis.call('ZADD', 'fleet:hosts', num(now()), host)

for _, report in ipairs(beat.reports) do
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
return { nodes, explained, clear, redis.call('ZRANGE', 'fleet:trash:' .. host, 0, 199), restart }
