-- Bounds of running jobs (domain/limits.py): whose user or tenant has as many as it may waits, and others go past.
-- A record's `bounds`: SUBJECT=MOST, between blanks; SUBJECT is user:NAME or tenant:NAME.

-- The bound of a subject that counts now, nil for none.  A tenant's may have changed since the job's record was written: most.
local bounds_of_tenants = {}
local function bounds_most(subject, most)
  local tenant = string.match(subject, '^tenant:(.*)')
  if not tenant then return tonumber(most) end
  if bounds_of_tenants[tenant] == nil then
    local known, record = pcall(cjson.decode, redis.call('HGET', tenants_key, tenant) or '')
    local limits = known and type(record) == 'table' and type(record.limits) == 'table' and record.limits
    bounds_of_tenants[tenant] = limits and (tonumber(limits.running) or math.huge) or tonumber(most)
  end
  if bounds_of_tenants[tenant] < math.huge then return bounds_of_tenants[tenant] end
end

-- How many more runs a job's bounds leave room for; infinite without one.  And the bound that leaves the least: SUBJECT, most.
local function bounds_room(text)
  local room, by, of = math.huge, nil, nil
  for subject, noted in string.gmatch(text or '', '(%S+)=(%d+)') do
    local most = bounds_most(subject, noted)
    local left = most and most - sched_call('SCARD', bounded_runs_key(subject)) or math.huge
    if left < room then room, by, of = left, subject, most end
  end
  return room, by, of
end

-- Who had as many runs as it may has one less: it is looked at again.
local function bounds_release(subject)
  local parked, classes = bounds_parked_key(subject), {}
  for _, entry in ipairs(sched_call('SMEMBERS', parked)) do
    local kind, C, T, F, O = unpack(sched_list(entry))
    if type(O) == 'string' then
      sched_call('ZADD', sched_index_name(kind, sched_group(C, T), F), 'XX', 'LT', 0, O)  -- lower than its tag, which is mended when it is read
      sched_call('ZADD', sched_index_name(kind, sched_group(C), F), 'XX', 'LT', 0, '/' .. T)
      classes[C] = true
    end
  end
  redis.call('DEL', parked)
  redis.call('SREM', bounds_subjects_key, subject)
  for C in pairs(classes) do redis.call('PUBLISH', wake_key, 'job ' .. C) end
end

-- A run counts towards its job's bounds.
local function bounds_begin(text, run)
  for subject in string.gmatch(text, '(%S+)=%d+') do sched_call('SADD', bounded_runs_key(subject), run) end
  redis.call('HSET', run_key(run), 'bounds', text)
end

-- A run is over.
local function bounds_end(run)
  for subject in string.gmatch(fields(run_key(run), 'bounds')[1] or '', '(%S+)=%d+') do
    sched_call('SREM', bounded_runs_key(subject), run)
    bounds_release(subject)
  end
end

-- Forget runs that a version without bounds has ended.
local function bounds_tend()
  for _, subject in ipairs(sched_call('SRANDMEMBER', bounds_subjects_key, 4)) do
    local key, gone = bounded_runs_key(subject), 0
    for _, run in ipairs(sched_call('SRANDMEMBER', key, 64)) do
      if redis.call('EXISTS', run_key(run)) == 0 then gone = gone + redis.call('SREM', key, run) end
    end
    if gone > 0 or redis.call('EXISTS', key) == 0 then bounds_release(subject) end
  end
end
