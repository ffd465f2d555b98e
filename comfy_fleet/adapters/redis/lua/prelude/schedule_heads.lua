-- What a node could take: heads of overdue jobs, and of families, with what they would cost here.

-- In how many seconds a node that holds a family, other than this one, is free; infinite if unknown.  And which one that is.
local function sched_soonest(look, C, F)
  local key = C .. '\t' .. F
  local known = look.soonest[key]
  if not known then
    local least, name = math.huge, nil
    for _, pool in ipairs(sched_pools_of(C)) do
      local holders = sched_holders_key(pool, F)
      local found = sched.able[C] and sched_able_holders(C, holders)
        or sched.holders[holders] == 0 and {} or sched_call('ZRANGE', holders, 0, 1, 'WITHSCORES')
      local i = found[1] == look.node.name and 3 or 1
      local free_at = tonumber(found[i + 1])
      if free_at and (free_at < least or (free_at == least and found[i] < name)) then least, name = free_at, found[i] end
    end
    known = { least == SCHED.IDLE and 0 or math.abs(least - look.at), name }
    look.soonest[key] = known
  end
  return known[1], known[2]
end

-- Work out what taking a job would cost here, and what waiting for other nodes would.
local function sched_head(look, job, lag)
  local node, C, F = look.node, job.placement, job.family
  local load_s = sched_load_s(node, job)
  local head = { job = job, order = sched_order(job), lag = lag, load_s = load_s, cost_s = load_s + job.run_s / look.speed,
    warm = sched_warm(node, job, load_s), holders = 0, wait_s = math.huge, soonest_s = math.huge, own_s = math.huge, backlog_s = 0 }
  if head.warm then return head end
  local backlog = sched_backlog(C, F)
  head.backlog_s = backlog and sched_seconds(backlog) or job.run_s
  local holders = sched_holder_count(C, F) - (node.holds[F] and 1 or 0)
  if holders > 0 then
    head.holders = holders
    head.soonest_s, head.holder = sched_soonest(look, C, F)
    local later_s = math.max(0, head.soonest_s - load_s)
    head.own_s = later_s + sched_call('ZCARD', sched_loads_key(C, job.owner, F)) * job.run_s / holders
    head.wait_s = later_s + head.backlog_s / holders
  end
  return head
end

-- Add a job to choose from; nil if enough was read.
local function sched_consider(look, job, lag)
  local head = look.seen[job.id]
  if head or sched.reads >= SCHED.CHOSEN then return head end
  head = sched_head(look, job, lag)
  look.seen[job.id] = head
  look.heads[#look.heads + 1] = head
  local ahead = sched_ahead(look, job)
  if ahead and sched_may(look, ahead) then head.first = sched_consider(look, ahead, lag) end
  return head
end

-- Read an owner's overdue jobs; return whether it has a right to one of them.
local function sched_gather_overdue(look, C, O)
  local entitled = false
  local found = sched_call('ZRANGE', sched_late_key(C, O), 0, 3, 'WITHSCORES')
  if not found[1] and sched_passed(look, C)[1] then
    sched_call('ZREM', sched_passed_key(C), O)
    look.passed[C] = nil
  end
  for i = 1, #found, 2 do
    if tonumber(found[i + 1]) > look.at or sched.reads >= SCHED.HEADS / 2 then break end
    local job = sched_indexed(look, sched_late_key(C, O), found[i], C, O)
    sched.reads = sched.reads + 1
    if job and sched_may(look, job) then
      local head = sched_consider(look, job, sched_lag(look, job))
      entitled = entitled or not head or head.lag <= math.max(look.window_s, head.cost_s)
    else
      entitled = entitled or not look.bounded[O]  -- on another node it may have
    end
  end
  return entitled
end

-- Read overdue jobs of the owners that have them longest; one that has used its share waits on.
local function sched_gather_passed(look, C)
  local found = sched_passed(look, C)
  for i = 1, #found, 2 do
    if tonumber(found[i + 1]) > look.at or sched.reads >= SCHED.HEADS / 2 then break end
    sched.reads = sched.reads + 1
    if not sched_gather_overdue(look, C, found[i]) then
      sched_call('ZADD', sched_passed_key(C), 'XX', sched_text(look.at + 0.25 * look.patience), found[i])
      look.passed[C] = nil
    end
  end
end

-- The job of a family whose owner has had least.
local function sched_first_of_family(look, C, F)
  for _ = 1, SCHED.MENDED do
    local owner, _, T = sched_least('family', C, SCHED.CHOSEN, F)
    if not owner then return nil end
    local loads = sched_loads_key(C, owner, F)
    local job = sched_first_fit(look, loads, C, owner, F)
    if job then return job end
    if sched_first(loads) then
      if not look.bounded[owner] then return nil end
      sched_park('family', C, T, F, owner, look.bounded[owner])
    elseif sched_end_owner_of_family(C, owner, F, T) then
      return nil
    end
  end
end

-- Of these families, those that wait in a queue.
local function sched_waiting_of(C, families)
  local unknown, known, found = {}, sched.backlogs[C] or {}, {}
  sched.backlogs[C] = known
  for _, F in ipairs(families) do
    if known[F] == nil then unknown[#unknown + 1] = F end
  end
  if #unknown > 0 then
    for i, text in ipairs(sched_call('HMGET', sched_backlog_key(C), unpack(unknown))) do
      known[unknown[i]] = sched_parsed(text)
    end
  end
  for _, F in ipairs(families) do
    if known[F] then found[#found + 1] = F end
  end
  return found
end

-- The first job of each family on the card, and of those that load nothing.
local function sched_on_card(look)
  local held, found = { '' }, {}
  for i = #look.node.held, 1, -1 do held[#held + 1] = look.node.held[i] end
  for _, C in ipairs(look.queues) do
    for _, F in ipairs(sched_waiting_of(C, held)) do
      local job = sched_first_of_family(look, C, F)
      if job then found[#found + 1] = job end
    end
  end
  return found
end

-- The best warm job of owners within the window, if it passes no job that it must not pass.
local function sched_best_warm(look, found)
  local best, least, order
  for _, job in ipairs(found) do
    local lag = sched_lag(look, job)
    if lag <= look.window_s then
      local load_s = sched_load_s(look.node, job)
      local key, its = lag + load_s, sched_order(job)
      if (not best or key < least or (key == least and its < order)) and sched_warm(look.node, job, load_s) then
        best, least, order = job, key, its
      end
    end
  end
  if best and not sched_ahead(look, best) then return best end
end

-- Read overdue jobs, and families that the node has on its card.  Returns the job that is taken of them, if that is clear already.
local function sched_gather_first(look, overdue)
  local node, turn = look.node, look.turn
  look.window_s = math.min(2, look.peers) * (sched_load_s(node, turn) + turn.run_s / look.speed)
  if overdue then
    sched_gather_overdue(look, turn.placement, turn.owner)
    for _, C in ipairs(look.queues) do sched_gather_passed(look, C) end
  end
  local found = sched_on_card(look)
  local best = not overdue and sched_best_warm(look, found)
  if best then return best end
  for _, job in ipairs(found) do sched_consider(look, job, sched_lag(look, job)) end
end

-- Whether a node might load a family that it has not on its card: no rule asks for less.
local function sched_worth_a_look(look, C, F)
  local holders = sched_holder_count(C, F)
  if holders == 0 then return true end
  local node, backlog = sched_levels(look.node), sched_backlog(C, F)
  local load_s = backlog[2] / (node.memory.has[F] and node.ram_rate or node.disk_rate)
  local later_s = math.max(0, sched_soonest(look, C, F) - load_s)
  return later_s + sched_seconds(backlog) / holders > 1.25 * load_s
end

-- Read families that the node has in memory, and those for which much waits.
local function sched_gather_others(look)
  local node, files = sched_levels(look.node), {}
  sched_consider(look, look.turn, 0)
  for i = #node.memory.files, 1, -1 do
    local file = node.memory.files[i][1]
    if not node.holds[file] and #files < 4 then files[#files + 1] = file end
  end
  local others = math.ceil(8 / #look.queues)
  for _, C in ipairs(look.queues) do
    local pressed, all, scores = sched_call('ZRANGE', sched_pressure_key(C), 0, others - 1, 'WITHSCORES'), {}, {}
    for _, file in ipairs(files) do all[#all + 1] = file end
    for i = 1, #pressed, 2 do
      if not node.holds[pressed[i]] then
        all[#all + 1] = pressed[i]
        scores[pressed[i]] = tonumber(pressed[i + 1])
      end
    end
    for _, F in ipairs(sched_waiting_of(C, all)) do
      if scores[F] and sched_pressure_of(sched_backlog(C, F), sched_holder_count(C, F)) ~= scores[F] then sched_press(C, F) end
      if sched_worth_a_look(look, C, F) then
        local job = sched_first_of_family(look, C, F)
        if job then sched_consider(look, job, sched_lag(look, job)) end
      end
    end
  end
end

-- The job whose turn it is of those that were never passed over.
local function sched_unpassed_turn(look)
  local best, best_tenant, found
  for _, C in ipairs(look.queues) do
    local owner, tag, T, tenant_tag = sched_least('unpassed', C, SCHED.HEADS)
    if owner and (not best or tenant_tag < best_tenant or (tenant_tag == best_tenant and tag < best)) then
      local turns = sched_turns_key(C, owner)
      local id = sched_first(turns)
      local job = id and sched_indexed(look, turns, id, C, owner)
      if job then
        best, best_tenant, found = tag, tenant_tag, job
      elseif not id then
        sched_end_turns(C, owner, T)
      end
    end
  end
  if found and sched_may(look, found) then return found end
  if found and look.bounded[found.owner] then
    sched_park('unpassed', found.placement, found.tenant, '', found.owner, look.bounded[found.owner])
  end
end
