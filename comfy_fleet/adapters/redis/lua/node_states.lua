-- Nodes with what is known of them.  ARGV: names, or none for all
-- Returns JSON: [[name, JSON as registered, [field, value ...], lease's run or '', [run, job, phase ...]] ...]
-- One answer in one string: three a node would keep the reader busier than all the rest.
local names = #ARGV > 0 and ARGV or redis.call('HKEYS', 'fleet:nodes')
local rows = {}
for _, name in ipairs(names) do
  local record = redis.call('HGET', 'fleet:nodes', name)
  if record then
    local work = {}
    for _, run in ipairs(redis.call('SMEMBERS', 'fleet:node:' .. name .. ':runs')) do
      local f = fields('fleet:run:' .. run, 'job', 'phase')
      if f[1] then
        local i = #work
        work[i + 1], work[i + 2], work[i + 3] = run, f[1], f[2] or 'claimed'
      end
    end
    local live = redis.call('HGETALL', 'fleet:node:' .. name)
    local verdict, host
    for i = 1, #live, 2 do
      if live[i] == 'verdict' then verdict = live[i + 1] end
      if live[i] == 'host' then host = live[i + 1] end
    end
    -- What its agent said last explains nothing if that is gone, too; then since when, in seconds.
    if verdict ~= 'up' and redis.call('EXISTS', 'fleet:report:' .. name) == 0 then
      local at = host and redis.call('ZSCORE', 'fleet:hosts', host)
      live[#live + 1] = 'agent_gone'
      live[#live + 1] = at and tostring(math.floor(now() - tonumber(at))) or ''
    end
    rows[#rows + 1] = { name, record, live,
      redis.call('GET', 'fleet:lease:' .. name) or '', work }
  end
end
return cjson.encode(rows)
