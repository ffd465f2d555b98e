-- What waits, in indexes that each change keeps up to date.  A tag in an index may be an earlier, lower one.

-- What waits of a family in a queue, from its text: {seconds, bytes of its file, how many jobs of unknown length}, or false.
local function sched_parsed(text)
  local seconds, size, guessed = string.match(text or '', '^(%S+) (%S+) (%S+)$')
  return seconds and { sched_number(seconds, 0), sched_number(size, 0), sched_number(guessed, 0) } or false
end

local function sched_seconds(backlog)
  return backlog[3] > 0 and backlog[1] + backlog[3] * sched_run_s('*') or backlog[1]
end

-- What waits of a family in a queue, or false.
local function sched_backlog(C, F)
  local known = sched.backlogs[C]
  if not known then
    known = {}
    sched.backlogs[C] = known
  end
  if known[F] == nil then
    known[F] = sched_parsed(sched_call('HGET', sched_backlog_key(C), F))
  end
  return known[F]
end

local function sched_pressure_of(backlog, holders)
  local seconds = sched_seconds(backlog)
  return holders > 0 and -seconds / holders or -seconds - SCHED.UNHELD
end

-- The number of a family's holders has changed, or what waits of it.
local function sched_press(C, F)
  local backlog = sched_backlog(C, F)
  if F == '' or not backlog then return end
  sched_call('ZADD', sched_pressure_key(C), sched_text(sched_pressure_of(backlog, sched_holder_count(C, F))), F)
end

local function sched_set_backlog(C, F, backlog)
  sched_backlog(C, F)
  sched.backlogs[C][F] = backlog
  sched_call('HSET', sched_backlog_key(C), F, sched_text(backlog[1]) .. ' ' .. sched_text(backlog[2]) .. ' ' .. backlog[3])
  sched_press(C, F)
end

-- One more (1) or one less (-1) waits of a job's family.
local function sched_change_backlog(job, by)
  local C, F = job.placement, job.family
  local backlog = sched_backlog(C, F) or { 0, job.set and sched_set(job.set).family_size or 0, 0 }
  if job.guessed then
    backlog[3] = math.max(0, backlog[3] + by)
  else
    backlog[1] = math.max(0, backlog[1] + by * job.run_s)
  end
  sched_set_backlog(C, F, backlog)
end

-- Nothing waits of a family.
local function sched_end_family(C, F)
  sched_backlog(C, F)
  sched.backlogs[C][F] = false
  sched_call('HDEL', sched_backlog_key(C), F)
  if F ~= '' then sched_call('ZREM', sched_pressure_key(C), F) end
end

-- List an owner by its first passed job, or not at all.
local function sched_list_passed(C, O)
  local first = sched_call('ZRANGE', sched_late_key(C, O), 0, 0, 'WITHSCORES')
  if not first[1] then
    sched_call('ZREM', sched_passed_key(C), O)
  else
    sched_call('ZADD', sched_passed_key(C), 'GT', first[2], O)
  end
end

-- An owner has no job of a family left in a queue.
local function sched_end_owner_of_family(C, O, F, T)
  local group, all = sched_family_key(sched_group(C, T), F), sched_family_key(sched_group(C), F)
  sched_call('ZREM', group, O)
  if redis.call('EXISTS', group) == 1 then return end
  if sched_tenanted() then
    sched_call('ZREM', all, '/' .. T)
    if redis.call('EXISTS', all) == 1 then return end
  end
  sched_end_family(C, F)
  return true
end

-- An owner has no job left in a queue.
local function sched_end_owner(C, O, T)
  local G, R, tenant = sched_group(C, T), sched_group(C), '/' .. T
  if sched_call('ZREM', sched_owners_key(G), O) == 1 and sched_leave(G, O) and sched_tenanted()
    and sched_call('ZREM', sched_owners_key(R), tenant) == 1 then
    sched_leave(R, tenant)
  end
end

-- All jobs of an owner in a queue were passed over.
local function sched_end_turns(C, O, T)
  local group = sched_unpassed_key(sched_group(C, T))
  sched_call('ZREM', group, O)
  if sched_tenanted() and redis.call('EXISTS', group) == 0 then sched_call('ZREM', sched_unpassed_key(sched_group(C)), '/' .. T) end
end

-- An owner, or its tenant, has as many runs as it may: it goes to the end of an index until one of them is over.
local function sched_park(kind, C, T, F, O, subject)
  local all = string.sub(subject, 1, 7) == 'tenant:' and sched_tenanted()
  sched_call('ZADD', sched_index_name(kind, all and sched_group(C) or sched_group(C, T), F), 'XX', 'inf', all and '/' .. T or O)
  sched_call('SADD', bounds_parked_key(subject), cjson.encode({ kind, C, T, F, O }))
  sched_call('SADD', bounds_subjects_key, subject)
end

-- Some owners of a queue, or of a family there, of all tenants.
local function sched_some_owners(kind, C, F, most)
  local owners = sched_call('ZRANGE', sched_index_name(kind, C, F), 0, most - 1)
  for _, tenant in ipairs(sched_tenanted() and sched_call('ZRANGE', sched_index_name(kind, sched_group(C), F), 0, most - 1) or {}) do
    if #owners >= most then break end
    if tenant ~= '/' then
      local G = sched_group(C, string.sub(tenant, 2))
      for _, owner in ipairs(sched_call('ZRANGE', sched_index_name(kind, G, F), 0, most - #owners - 1)) do
        owners[#owners + 1] = owner
      end
    end
  end
  return owners
end

-- Count anew how many jobs wait in a queue; of very many owners only some are counted.  Returns how many these are.
local function sched_count(C)
  local owners, count = sched_some_owners('owners', C, '', SCHED.COUNTED), 0
  for _, owner in ipairs(owners) do count = count + sched_call('ZCARD', sched_jobs_key(C, owner)) end
  if count > 0 then
    sched_call('HSET', sched_count_key, C, count)
  else
    sched_call('HDEL', sched_count_key, C)
  end
  return #owners
end

-- Take a waiting job out of all indexes.
local function sched_take(job)
  local id, C, O, F, T = job.id, job.placement, job.owner, job.family, job.tenant
  local was, empty = sched_drop(sched_jobs_key(C, O), id)
  local unpassed, none = false, false
  if not job.overdue_at then unpassed, none = sched_drop(sched_turns_key(C, O), id) end
  if unpassed then
    if none then sched_end_turns(C, O, T) end
  elseif sched_call('ZREM', sched_late_key(C, O), id) == 1 then
    sched_list_passed(C, O)
  end
  local loads
  loads, none = sched_drop(sched_loads_key(C, O, F), id)
  if loads and not (none and sched_end_owner_of_family(C, O, F, T)) then sched_change_backlog(job, -1) end
  if was and empty then sched_end_owner(C, O, T) end
  if was and sched_call('HINCRBY', sched_count_key, C, -1) <= 0 then sched_count(C) end
  sched.jobs[id] = nil
end

-- What waits of a family is not known any more: as much as if all its jobs were like this one.
local function sched_guess_backlog(job)
  local C, F, count = job.placement, job.family, 0
  for _, owner in ipairs(sched_some_owners('family', C, F, SCHED.HEADS)) do
    count = count + sched_call('ZCARD', sched_loads_key(C, owner, F))
  end
  sched_set_backlog(C, F, { count * job.run_s, job.set and sched_set(job.set).family_size or 0, 0 })
end

-- Tenants' shares count from now on, for as long as such jobs come: the default tenant is in no index of tenants yet.
local function sched_begin_tenants()
  local begun = not sched_tenanted()
  redis.call('SET', sched_tenanted_key, '1', 'EX', SCHED.KEPT_S)
  sched.tenanted = true
  for _, C in ipairs(begun and sched_call('HKEYS', sched_count_key) or {}) do
    local R = sched_group(C)
    if redis.call('EXISTS', sched_owners_key(C)) == 1 then
      if not sched_call('ZSCORE', sched_owners_key(R), '/') then sched_enter(R, '/', sched_virtual(R)) end
      local tag = sched_text(sched_tag(R, '/'))
      sched_call('ZADD', sched_owners_key(R), 'NX', tag, '/')
      if redis.call('EXISTS', sched_unpassed_key(C)) == 1 then sched_call('ZADD', sched_unpassed_key(R), 'NX', tag, '/') end
      for _, F in ipairs(sched_call('HKEYS', sched_backlog_key(C))) do
        if redis.call('EXISTS', sched_family_key(C, F)) == 1 then sched_call('ZADD', sched_family_key(R, F), 'NX', tag, '/') end
      end
    end
  end
end

-- Put a waiting job into those indexes in which it is missing.  new: that is all of them.
-- able: names of nodes that can run it, whose times its owner must not be behind.  Returns whether it was missing anywhere.
local function sched_index(job, able, new)
  local id, C, O, F, T = job.id, job.placement, job.owner, job.family, job.tenant
  local G, R, tenant = sched_group(C, T), sched_group(C), '/' .. T
  local order, missing, all = sched_text(sched_order(job)), 0, not new
  local function add(index, score, member)
    local added = sched_call('ZADD', index, 'NX', score, member)
    missing = missing + added
    return added == 1
  end
  new = new or add(sched_jobs_key(C, O), order, id)
  if new and sched_call('HINCRBY', sched_count_key, C, 1) <= 1 then sched_call('HSET', sched_count_key, C, 1) end
  local enters = not sched_call('ZSCORE', sched_owners_key(G), O)
  local tenanted = T ~= '' or string.find(job.f.bounds or '', 'tenant:', 1, true)
  if tenanted and (enters or not sched_tenanted()) then sched_begin_tenants() end
  if enters then
    local level, clock, root = T == '' and '' or '\t' .. T, 0, 0
    for _, node in ipairs(able) do
      local f = fields(sched_node_key(node), 'clock' .. level, 'clock\t')
      clock, root = math.max(clock, sched_number(f[1], 0)), math.max(root, sched_number(f[2], 0))
    end
    sched_lift_clocks({ [G] = clock, [R] = sched_tenanted() and root or nil })
    sched_enter(G, O, sched_virtual(G))
  end
  local tag = sched_text(sched_tag(G, O))
  -- The owner in an index of its tenant's, and the tenant in that of all.  Either may be parked: this job may have room.
  local function list(kind)
    local function put(index, score, member)
      local changed = sched_call('ZADD', index, 'LT', 'CH', score, member)
      missing = missing + changed
      return changed == 1
    end
    local changed = put(sched_index_name(kind, G, F), tag, O)
    if (changed or all) and sched_tenanted() then
      local index = sched_index_name(kind, R, F)
      if kind == 'owners' and not sched_call('ZSCORE', index, tenant) then sched_enter(R, tenant, sched_virtual(R)) end
      put(index, sched_text(sched_tag(R, tenant)), tenant)
    end
  end
  list('owners')
  if sched.weights[tenant] and (T ~= '' or sched_tenanted()) then sched_account(tenant, R) end  -- its share may have changed
  if job.overdue_at then
    local due = sched_text(job.overdue_at)
    add(sched_late_key(C, O), due, id)
    add(sched_passed_key(C), due, O)
  else
    add(sched_turns_key(C, O), order, id)
    list('unpassed')
  end
  local loads = add(sched_loads_key(C, O, F), order, id)
  list('family')
  if new and loads then
    sched_change_backlog(job, 1)
  elseif not sched_backlog(C, F) then
    sched_guess_backlog(job)
    missing = missing + 1
  elseif F ~= '' and not sched_call('ZSCORE', sched_pressure_key(C), F) then
    sched_press(C, F)
    missing = missing + 1
  end
  return missing > 0
end

-- Add a queued job, as its record is, to what waits.  One that is there moves to its new place.  able: as for sched_index.
local function sched_add(id, at, able)
  sched.jobs[id], sched.firsts = nil, {}
  local job = sched_job(id)
  if not job then return end
  local C, O, F, f = job.placement, job.owner, job.family, job.f
  local late = job.late
  job.late = false
  if sched_call('ZADD', sched_jobs_key(C, O), sched_text(sched_order(job)), id) == 0 then
    job.late = late
    local order = sched_text(sched_order(job))
    sched_call('ZADD', sched_jobs_key(C, O), order, id)
    sched_call('ZADD', sched_turns_key(C, O), 'XX', order, id)
    sched_call('ZADD', sched_loads_key(C, O, job.family), 'XX', order, id)
    return
  end
  if f.overdue_at or f.late then redis.call('HDEL', job_key(id), 'overdue_at', 'late') end
  if job.guessed and f.profile and sched_run_s(f.profile) then  -- otherwise it is guessed whenever it is looked at
    redis.call('HSET', job_key(id), 'family', F, 'run_s', sched_text(job.run_s))
    job.guessed = false
  elseif F ~= (f.family or '') then
    redis.call('HSET', job_key(id), 'family', F)
  end
  job.overdue_at = nil
  sched_index(job, able or {}, true)
  sched_flush()
end

-- Take a job out of what waits, if it is there; before its record changes.
local function sched_remove(id)
  sched.jobs[id] = nil
  local job = sched_job(id)
  if not job then return end
  sched_take(job)
  sched_flush()
end
