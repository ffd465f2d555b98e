-- Choose a job for an idle node, and start it: domain/schedule/chooser.py.

-- Note the job whose turn it is, unless it is the chosen one.  Had the node taken it, it would be busy now, and no other job's
-- turn would come here until it is done.
local function sched_pass_over(look, chosen)
  local node, at = look.node, look.at
  if at < node.passes_until then return end
  local turn = sched_unpassed_turn(look)
  if not turn or turn == chosen then return end
  local load_s, patience = sched_load_s(node, turn), look.patience
  node.passes_until = at + load_s + turn.run_s / look.speed
  if turn.finish_by and not turn.late then
    patience = math.min(patience, math.max(0, turn.finish_by - turn.run_s - load_s - at))
  end
  turn.overdue_at = at + patience
  local C, O, due = turn.placement, turn.owner, sched_text(turn.overdue_at)
  redis.call('HSET', job_key(turn.id), 'overdue_at', due)
  local _, none = sched_drop(sched_turns_key(C, O), turn.id)
  if none then sched_end_turns(C, O, turn.tenant) end
  sched_call('ZADD', sched_late_key(C, O), due, turn.id)
  sched_call('ZADD', sched_passed_key(C), 'NX', due, O)
  look.passed[C] = nil
end

-- In how many seconds the next job is overdue, or soon if one is that is left to another node; nil if none will be.
local function sched_again_s(look)
  local least = look.node.passes_until > look.at and look.node.passes_until or nil
  for _, C in ipairs(look.queues) do
    local first = sched_passed(look, C)
    if first[1] then least = math.min(least or math.huge, tonumber(first[2])) end
  end
  return least and math.max(least - look.at, 1)
end

-- Whether a node takes a job at once.
local function sched_free(name)
  local f = fields(node_key(name), 'verdict', 'cordoned')
  return f[1] == 'up' and f[2] ~= '1' and redis.call('EXISTS', lease_key(name)) == 0
end

-- An idle node that has the models of one of the jobs that were looked at; nil if there is none.
local function sched_idle_elsewhere(look)
  local asked = 0
  for _, head in ipairs(look.heads) do
    if head.holder and head.soonest_s == 0 and asked < 4 then
      asked = asked + 1
      if sched_free(head.holder) then return head.holder end
    end
  end
end

local function sched_save_node(node, ...)
  local key, record = sched_node_key(node.name), { 'passes_until', sched_text(node.passes_until), 'free_at', sched_text(node.free_at), ... }
  for level, clock in pairs(node.clocks) do
    record[#record + 1] = 'clock' .. level
    record[#record + 1] = sched_text(clock)
  end
  local more = sched_call('HSET', key, unpack(record))
  if more == 0 or not sched_tenanted() or redis.call('HLEN', key) <= SCHED.NODE_CLOCKS then return end
  for _, field in ipairs(sched_call('HRANDFIELD', key, SCHED.DROPPED)) do  -- those of some of very many tenants
    if string.find(field, '^clock\t.') then redis.call('HDEL', key, field) end
  end
end

-- A node found nothing to run.
local function sched_idle(node)
  if node.free_at ~= SCHED.IDLE then
    node.free_at = SCHED.IDLE
    sched_list_node(node)
  end
  sched_save_node(node)
end

-- Choose the job that an idle node starts now.
-- given: node, pool, queues (placement classes with jobs, the sought one first; at most 8 are read), peers (how many nodes serve the
--       same ones, this one included), speed, ram (bytes, 0: unknown), patience (seconds), at, may (function(id, record's fields by name,
--       placement): whether it may start here; asked once for each job), fields (which of the record it needs beside core's), able and
--       unable (see claim.lua), bounded ({owner = the bound that keeps its jobs from starting}, as `may` has found).
-- Returns {id, placement, rule, load_s, cost_s, missing_disk, missing_memory (bytes)}, to be given to sched_start, or
-- nil, seconds until it is worth another look (or nil), an idle node that has the models (or nil).
local function sched_choose(given)
  sched.firsts, sched.reads = {}, 0
  sched_read_fields(given.fields or {})
  local look, node = given, sched_node(given.node)
  look = { node = node, queues = { unpack(look.queues, 1, 8) }, peers = look.peers or 1, at = look.at,
    speed = look.speed and look.speed > 0 and look.speed or 1, patience = look.patience or 60, may = look.may, allowed = {}, heads = {},
    seen = {}, floors = {}, bounded = look.bounded or {}, soonest = {}, passed = {}, pool = look.pool, window_s = 0,
    ram = (look.ram or 0) > 0 and look.ram or 32 * SCHED.GIB }
  sched.queues = look.queues
  for C, names in pairs(given.able or {}) do
    sched.able[C] = {}
    for _, name in ipairs(names) do sched.able[C][name] = true end
  end
  for C, names in pairs(given.unable or {}) do
    sched.able[C], sched.unable[C] = setmetatable({}, { __index = function() return true end }), #names
    for _, name in ipairs(names) do sched.able[C][name] = false end
  end
  sched_show_node(node, look.pool)
  local job, rule
  if sched_find_turn(look) then
    local overdue = sched_any_overdue(look)
    if not overdue then job, rule = sched_warm_turn(look), 'turn' end
    if not job then
      job, rule = sched_gather_first(look, overdue), 'warm'
      if not job then
        local head
        head, rule = sched_choose_first(look.heads, look.window_s, look.at)
        if not head then
          sched_gather_others(look)
          head, rule = sched_choose_next(look.heads, look.window_s, look.at)
        end
        job = head and head.job
      end
      if not job or not job.overdue_at then sched_pass_over(look, job) end
    end
    if not job then
      sched_idle(node)
      sched_flush()
      return nil, sched_again_s(look), sched_idle_elsewhere(look)
    end
  else
    sched_idle(node)
    sched_flush()
    return nil
  end
  local load_s = sched_load_s(node, job)
  local disk, memory = 0, 0
  if load_s > 0 then disk, memory = sched_missing(node, job) end
  return { id = job.id, placement = job.placement, rule = rule, load_s = load_s, cost_s = load_s + job.run_s / look.speed,
    missing_disk = disk, missing_memory = memory, job = job, look = look }
end

-- A job's owner has a run from now on, and its tenant where tenants count; both are charged.  Returns the tenant, or nil.
local function sched_begin_run(job, seconds)
  local tenant = sched_tenanted() and '/' .. job.tenant or nil
  for _, member in ipairs({ job.owner, tenant }) do
    local account = sched_account(member)
    account.active, account.present = account.active + 1, account.present + 1
    sched_charge(account, seconds)
  end
  return tenant
end

-- A job of the same owner runs in the chosen one's prompt, on its models: it is charged its part.  Right after sched_start.
local function sched_join(choice, id, run)
  local job = sched_job(id)
  if not job then return end
  local look = choice.look
  local charged = job.guessed and math.min(job.run_s / look.speed, SCHED.GUESS_S) or job.run_s / look.speed
  local tenant = sched_begin_run(job, charged)
  if job.f.overdue_at or job.late then redis.call('HDEL', job_key(id), 'overdue_at', 'late') end
  sched_take(job)
  redis.call('HSET', run_key(run), 'sched', cjson.encode({ job.owner, sched_text(charged), sched_text(look.at), 0, 0,
    sched_text(look.speed), '0', tenant }))
  sched_flush()
end

-- Start the chosen job: it waits no more, its owner is charged, and its models are on the node's card from now on.
-- The look is the one that sched_choose got; choice: what it has returned in this call.  run: its hash keeps what sched_left needs.
local function sched_start(_, choice, run)
  local job, look = choice.job, choice.look
  local node, at = look.node, look.at
  -- Of a guess next to nothing is charged, and the rest when it is over. What is charged too much lifts all who come meanwhile
  -- above the owner, who then has it to its credit.
  local charged = job.guessed and math.min(choice.cost_s, SCHED.GUESS_S) or choice.cost_s
  local tenant = sched_begin_run(job, charged)
  if job.f.overdue_at or job.overdue_at or job.late then redis.call('HDEL', job_key(job.id), 'overdue_at', 'late') end
  sched_take(job)
  node.free_at, node.run = at + choice.cost_s, run
  local changed, family, set = {}, job.family, job.set or ''
  if set ~= (node.set or '') then
    for _, file in ipairs(sched_use(node, job.set and sched_set(job.set).files or {}, look.ram)) do
      if node.holds[file] then
        sched_let_go(node, file)
        changed[#changed + 1] = file
      end
    end
    if node.holds[family] then
      for i, held in ipairs(node.held) do
        if held == family then table.remove(node.held, i) end
      end
    elseif family ~= '' then
      changed[#changed + 1] = family
    end
    if family ~= '' then
      node.held[#node.held + 1] = family
      node.holds[family] = true
    end
    if #node.held > 8 then
      changed[#changed + 1] = node.held[1]
      sched_let_go(node, node.held[1])
    end
    sched_save_node(node, 'run', run, 'set', set, 'card', cjson.encode(node.card.files), 'memory', cjson.encode(node.memory.files),
      'held', cjson.encode(node.held))
  else
    sched_save_node(node, 'run', run)
  end
  sched_list_node(node)
  if changed[1] then sched_call('SADD', sched_pools_key, node.pool) end  -- it is there, unless it was lost
  for _, C in ipairs(changed[1] and look.queues or {}) do
    for _, F in ipairs(sched_waiting_of(C, changed)) do sched_press(C, F) end
  end
  redis.call('HSET', run_key(run), 'sched', cjson.encode({ job.owner, sched_text(charged), sched_text(at), choice.missing_disk,
    choice.missing_memory, sched_text(look.speed), sched_text(choice.load_s), tenant }))
  sched_flush()
end
