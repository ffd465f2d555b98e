-- What was used, added up by day in the step that ends a run or a job: it stays when the job's record goes.

local USAGE_S = 400 * 86400
local USAGE_FIELDS = 4000  -- of a day; what is new beyond them is in one row for all workflows, and then for all users

-- amounts: {WHAT = whole number}.
local function note_usage(id, amounts, at)
  local f = fields(job_key(id), 'owner', 'tenant', 'workflow', 'placement')
  local key = cleared(usage_key(string.format('%d', math.floor(at / 86400))), 'hash')
  local owner, workflow, pool = f[1] or '', f[3] or '', string.match(f[4] or '', '^[^>:]*')
  local had = redis.call('HLEN', key)
  for what, amount in pairs(amounts) do
    local field = table.concat({ f[2] or '', owner, workflow, pool, what }, '\n')
    if had >= USAGE_FIELDS and redis.call('HEXISTS', key, field) == 0 then
      field = table.concat({ f[2] or '', had >= 2 * USAGE_FIELDS and '*' or owner, '*', '*', what }, '\n')
    end
    if had >= 3 * USAGE_FIELDS and redis.call('HEXISTS', key, field) == 0 then field = table.concat({ '*', '*', '*', '*', what }, '\n') end
    if amount > 0 then redis.pcall('HINCRBY', key, field, string.format('%.0f', amount)) end  -- no sum keeps a job from ending
  end
  if had == 0 then redis.call('EXPIRE', key, USAGE_S) end
end

-- A run is over: its share of the time for which it had the node.
local function note_run_usage(run, id, since, at)
  local f = fields(run_key(run), 'freed', 'parts')
  local seconds = math.max(0, (tonumber(f[1] or '') or at) - (tonumber(since or '') or at))
  note_usage(id, { ms = 1000 * seconds / math.max(1, tonumber(f[2] or '') or 1) }, at)
end

-- A job is over: how, and the bytes that were made for it.
local function note_job_usage(id, status, at)
  local bytes = 0
  if not fields(job_key(id), 'cached')[1] then
    for _, output in ipairs(redis.call('HVALS', cleared(job_outputs_key(id), 'hash'))) do
      bytes = bytes + (tonumber(string.match(output, '"size_bytes":(%d+)') or '') or 0)
    end
  end
  note_usage(id, { [status] = 1, bytes = bytes }, at)
end
