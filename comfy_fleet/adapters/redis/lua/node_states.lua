-- Nodes with their states.  args: names; without them all.
-- Returns JSON: [[name, JSON as registered, [field, value ...], lease's run or '', [run, job, phase ...]] ...]
-- The answer is one string: with three per node, parsing would take longer than all the rest.
local rows = {}
for _, name in ipairs(args.names or redis.call('HKEYS', nodes_key)) do
  local record = redis.call('HGET', nodes_key, name)
  if record then
    local work = {}
    for _, run in ipairs(redis.call('SMEMBERS', node_runs_key(name))) do
      local f = fields(run_key(run), 'job', 'phase')
      if f[1] then
        local i = #work
        work[i + 1], work[i + 2], work[i + 3] = run, f[1], f[2] or 'claimed'
      end
    end
    local live = redis.call('HGETALL', node_key(name))
    local verdict, host
    for i = 1, #live, 2 do
      if live[i] == 'verdict' then verdict = live[i + 1] end
      if live[i] == 'host' then host = live[i + 1] end
    end
    -- If the agent is gone, too, its last report explains nothing; then the time since it, in seconds.
    if verdict ~= 'up' and redis.call('EXISTS', report_key(name)) == 0 then
      local at = host and redis.call('ZSCORE', hosts_key, host)
      live[#live + 1] = 'agent_gone'
      live[#live + 1] = at and tostring(math.floor(now() - tonumber(at))) or ''
    end
    rows[#rows + 1] = { name, record, live, redis.call('GET', lease_key(name)) or '', work }
  end
end
return cjson.encode(rows)
