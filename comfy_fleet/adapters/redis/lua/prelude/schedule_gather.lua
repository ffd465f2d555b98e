-- Look at a few of the waiting jobs for a node: domain/schedule/gather.py.
-- A look: what the caller says (see sched_choose), and node, owner, turn, least, window_s, heads, seen, allowed.

-- The owner with the least tag in one of a queue's indexes, and its tag; nil if nothing was read.
local function sched_least(index, C, most)
  local owner, tag
  for _ = 1, SCHED.MENDED do
    local first = sched_call('ZRANGE', index, 0, 0, 'WITHSCORES')
    if not first[1] or sched.reads >= most then break end
    owner, tag = first[1], sched_tag(C, first[1])
    sched.reads = sched.reads + 1
    if tag <= tonumber(first[2]) then break end
    redis.call('ZADD', index, sched_text(tag), owner)
  end
  return owner, tag
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

-- The lowest tag of a queue, and a job of its owner that fits the node.  Returns nil, true if nothing waits there.
local function sched_turn_of(look, C)
  local owners = sched_owners_key(C)
  while true do
    local owner, tag = sched_least(owners, C, SCHED.CHOSEN)
    if not owner then return nil, sched.reads < SCHED.CHOSEN end
    local index = sched_turns_key(C, owner)
    local job = sched_first_fit(look, index, C, owner)
    if not job and not sched_first(index) then job = sched_first_fit(look, sched_jobs_key(C, owner), C, owner) end
    if job then return tag, job end
    if sched_first(sched_jobs_key(C, owner)) then break end
    sched_call('ZREM', sched_unpassed_key(C), owner)  -- nothing is left but its entries
    sched_call('ZREM', sched_passed_key(C), owner)
    sched_end_owner(C, owner)
  end
  for _, owner in ipairs(sched_call('ZRANGE', owners, 1, 7)) do
    sched.reads = sched.reads + 1
    local job = sched_first_fit(look, sched_jobs_key(C, owner), C, owner)
    if job then return sched_tag(C, owner), job end
  end
end

-- Find the job whose turn it is, and leave queues out of the look in which nothing waits.  Returns false if the node can run none
-- that waits.
local function sched_find_turn(look)
  local queues = {}
  for _, C in ipairs(look.queues) do
    local tag, job = sched_turn_of(look, C)
    if tag or not job then queues[#queues + 1] = C end
    if tag and (not look.turn or tag < look.least or (tag == look.least and sched_order(job) < sched_order(look.turn))) then
      look.least, look.turn = tag, job  -- equal tags are one owner's as a rule, and its order holds in all queues
    end
  end
  look.queues = queues
  if not look.turn then return false end
  look.node.clock = math.max(look.node.clock, look.least)
  sched_read_clocks(queues)
  sched_lift_clocks(queues, look.node.clock)
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
