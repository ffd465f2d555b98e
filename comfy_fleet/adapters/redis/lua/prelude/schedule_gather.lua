-- Look at a few of the waiting jobs for a node: domain/schedule/gather.py.
-- A look: what the caller says (see sched_choose), and node, owner, turn, least, window_s, heads, seen, allowed.

-- The member of a group with the least tag in one of its indexes, and its tag; nil if nothing was read.
local function sched_mended(index, C, most)
  local owner, tag
  for _ = 1, SCHED.MENDED do
    local first = sched_call('ZRANGE', index, 0, 0, 'WITHSCORES')
    if not first[1] or sched.reads >= most or tonumber(first[2]) == math.huge then break end  -- the others are parked
    owner, tag = first[1], sched_tag(C, first[1])
    sched.reads = sched.reads + 1
    if tag <= tonumber(first[2]) then break end
    redis.call('ZADD', index, sched_text(tag), owner)
  end
  return owner, tag
end

-- The owner with the least tag of the tenant with the least in one of a queue's indexes, its tag, its tenant and that one's tag; nil
-- if nothing was read.
local function sched_least(kind, C, most, F)
  if not sched_tenanted() then
    local owner, tag = sched_mended(sched_index_name(kind, C, F), C, most)
    return owner, tag, '', 0
  end
  local R = sched_group(C)
  for _ = 1, SCHED.MENDED do
    local index = sched_index_name(kind, R, F)
    local tenant, tenant_tag = sched_mended(index, R, most)
    if not tenant then return nil end
    local T = string.sub(tenant, 2)
    local G = sched_group(C, T)
    local owner, tag = sched_mended(sched_index_name(kind, G, F), G, most)
    if owner or sched.reads >= most then return owner, tag, T, tenant_tag end
    if redis.call('EXISTS', sched_index_name(kind, G, F)) == 1 then
      sched_call('ZADD', index, 'XX', 'inf', tenant)  -- all of its owners are parked
    elseif sched_call('ZREM', index, tenant) == 1 and kind == 'owners' then
      sched_leave(R, tenant)  -- nothing is left but its entry
    end
  end
end

-- How far a job's tenant is ahead of that whose turn it is, and its owner in its tenant.
local function sched_lag(look, job)
  local C, T = job.placement, job.tenant
  local tenant_tag, tag = sched_tags(C, job.owner, T)
  if not sched_tenanted() then return tag - look.least end
  if not look.floors[T] then
    local G = sched_group(C, T)
    local owner, least = sched_mended(sched_owners_key(G), G, SCHED.CHOSEN)
    look.floors[T] = owner and least or tag
  end
  return math.max(0, tenant_tag - look.tenant_least) + math.max(0, tag - look.floors[T])
end

-- Whether a node may start a job; asked once.
local function sched_may(look, job)
  local allowed = look.allowed[job.id]
  if allowed == nil then
    allowed = look.may(job.id, job.f, job.placement) and true or false
    look.allowed[job.id] = allowed
  end
  return allowed
end

-- A job of an index; false, and out of the index, if its record says that it does not belong there.
local function sched_indexed(look, index, id, C, O, F)
  local job = sched_job(id)
  if job and job.placement == C and job.owner == O and (not F or job.family == F) then return job end
  if not job and look.allowed[id] == nil then look.allowed[id] = look.may(id, {}, C) and true or false end
  sched_drop(index, id)
  return false
end

-- A job that can't be finished as it wished does not hold up those that can.
local function sched_be_late(job)
  job.late = true
  redis.call('HSET', job_key(job.id), 'late', 1)
  local order, C, O = sched_text(sched_order(job)), job.placement, job.owner
  for _, index in ipairs({ sched_jobs_key(C, O), sched_loads_key(C, O, job.family), sched_turns_key(C, O) }) do
    sched_call('ZADD', index, 'XX', order, job.id)
    sched.firsts[index] = nil
  end
end

-- The first job of an index of an owner's that the node may start now.  F: the index is of this family.
local function sched_first_fit(look, index, C, O, F)
  while sched.reads < SCHED.CHOSEN do
    local id, more = sched_first(index)
    if not id then return nil end
    local job = sched_indexed(look, index, id, C, O, F)
    sched.reads = sched.reads + 1
    if job and job.finish_by and not job.late and look.at + job.run_s / look.speed > job.finish_by then
      sched_be_late(job)
    elseif job then
      if sched_may(look, job) then return job end
      if sched.jobs[id] then  -- it still waits, but not for this node
        for _, other in ipairs(more and sched_call('ZRANGE', index, 0, 7) or {}) do
          if other ~= id then
            if sched.reads >= SCHED.CHOSEN then return nil end
            job = sched_indexed(look, index, other, C, O, F)
            sched.reads = sched.reads + 1
            if job and sched_may(look, job) then return job end
          end
        end
        return nil
      end
      sched_drop(index, id)
    end
  end
end

-- A job that fits the node, of the owner with the lowest tag that has one.  Returns nil, true if nothing waits there.
local function sched_turn_of(look, C)
  local owner, T, _
  while true do
    owner, _, T = sched_least('owners', C, SCHED.CHOSEN)
    if not owner then return nil, sched.reads < SCHED.CHOSEN end
    local index = sched_turns_key(C, owner)
    local job = sched_first_fit(look, index, C, owner)
    if not job and not sched_first(index) then job = sched_first_fit(look, sched_jobs_key(C, owner), C, owner) end
    if job then return job end
    if not sched_first(sched_jobs_key(C, owner)) then
      sched_end_turns(C, owner, T)  -- nothing is left but its entries
      sched_call('ZREM', sched_passed_key(C), owner)
      sched_end_owner(C, owner, T)
    elseif look.bounded[owner] then
      sched_park('owners', C, T, '', owner, look.bounded[owner])
    else
      break
    end
  end
  local others = sched_call('ZRANGE', sched_owners_key(sched_group(C, T)), 1, 7)
  for _, tenant in ipairs(sched_tenanted() and sched_call('ZRANGE', sched_owners_key(sched_group(C)), 1, 7) or {}) do
    others[#others + 1] = sched_call('ZRANGE', sched_owners_key(sched_group(C, string.sub(tenant, 2))), 0, 0)[1]
  end
  for _, other in ipairs(others) do
    sched.reads = sched.reads + 1
    local job = sched_first_fit(look, sched_jobs_key(C, other), C, other)
    if job then return job end
  end
end

-- A node has seen the tags of whose turn it is: virtual time does not go back.
local function sched_see_clocks(look)
  local node, T, names, seen = look.node, look.turn.tenant, {}, {}
  local level = T == '' and '' or '\t' .. T
  if sched_tenanted() then
    local f = fields(sched_node_key(node.name), 'clock\t', 'clock' .. level)
    node.clocks['\t'] = math.max(sched_number(f[1], 0), look.tenant_least)
    node.clocks[level] = math.max(sched_number(f[2], 0), look.least)
  else
    node.clocks[''] = math.max(node.clocks[''], look.least)
  end
  for _, C in ipairs(look.queues) do
    names[#names + 1], seen[C .. level] = C .. level, node.clocks[level]
    if sched_tenanted() then names[#names + 1], seen[C .. '\t'] = C .. '\t', node.clocks['\t'] end
  end
  sched_read_clocks(names)
  sched_lift_clocks(seen)
end

-- Find the job whose turn it is, and leave queues out of the look in which nothing waits.  Returns false if the node can run none
-- that waits.
local function sched_find_turn(look)
  local queues = {}
  for _, C in ipairs(look.queues) do
    local job, none = sched_turn_of(look, C)
    if job or not none then queues[#queues + 1] = C end
    if job then
      local tenant_tag, tag = sched_tags(C, job.owner, job.tenant)
      local by = not look.turn and -1 or tenant_tag - look.tenant_least
      if by == 0 then by = tag - look.least end
      if by == 0 then by = sched_order(job) - sched_order(look.turn) end  -- equal tags are one owner's as a rule, and its order holds in all queues
      if by < 0 then look.tenant_least, look.least, look.turn = tenant_tag, tag, job end
    end
  end
  look.queues = queues
  if not look.turn then return false end
  look.floors[look.turn.tenant] = look.least
  sched_see_clocks(look)
  return true
end

-- Owners of a queue with jobs that were passed over, and when the first of each is overdue; a few of them.
local function sched_passed(look, C)
  local known = look.passed[C]
  if not known then
    known = sched_call('ZRANGE', sched_passed_key(C), 0, 3, 'WITHSCORES')
    look.passed[C] = known
  end
  return known
end

-- Whether a job may be overdue.
local function sched_any_overdue(look)
  local turn = look.turn
  for _, C in ipairs(look.queues) do
    local first = sched_passed(look, C)
    if first[1] and tonumber(first[2]) <= look.at then return true end
  end
  if not sched_passed(look, turn.placement)[1] then return false end
  local first = sched_call('ZRANGE', sched_late_key(turn.placement, turn.owner), 0, 0, 'WITHSCORES')
  return first[1] ~= nil and tonumber(first[2]) <= look.at
end

-- The owner's first job if this one must not pass it for the sake of models.
local function sched_ahead(look, job)
  local jobs = sched_jobs_key(job.placement, job.owner)
  local id = sched_first(jobs)
  if not id or id == job.id then return nil end
  local first = sched_indexed(look, jobs, id, job.placement, job.owner)
  sched.reads = sched.reads + 1
  if not first then return nil end
  if first.tier ~= job.tier then return first.tier < job.tier and first or nil end
  return first.created - first.rank > job.created - job.rank + 1e-6 and first or nil
end

-- The job whose turn it is, or an earlier one of its owner and family, if it is warm here.
local function sched_warm_turn(look)
  local turn = look.turn
  if sched_load_s(look.node, turn) > 0 then return nil end
  local C, O, F = turn.placement, turn.owner, turn.family
  local first = sched_first_fit(look, sched_loads_key(C, O, F), C, O, F) or turn
  if first ~= turn and sched_load_s(look.node, first) > 0 then first = turn end
  if sched_ahead(look, first) then return nil end
  return first
end
