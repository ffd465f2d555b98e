-- What becomes of the estimates when a run is over, and what people are told about a waiting job.

-- What sched_start has kept of a run: {owner, tenant (if it was charged), charged, since, missing_disk, missing_memory, speed, load_s}, or nil.
local function sched_of_run(run)
  local f = fields(run_key(run), 'sched', 'used_s', 'node', 'parts')
  local had = sched_list(f[1])
  if type(had[1]) ~= 'string' then return nil end
  return { owner = had[1], tenant = type(had[8]) == 'string' and had[8] or nil, charged_s = sched_number(had[2], 0), since = sched_number(had[3], 0), disk = sched_number(had[4], 0),
    memory = sched_number(had[5], 0), speed = math.max(sched_number(had[6], 1), 1e-6), load_s = sched_number(had[7], 0),
    used_s = sched_number(f[2], nil), node = f[3], parts = math.max(sched_number(f[4], 1), 1) }
end

-- A node is done with a run's prompt: its owner is charged what was used, and the node is idle.  Once is enough; the run's hash
-- must still be there.
local function sched_left(run, at)
  local had = sched_of_run(run)
  if not had or had.used_s then return end
  local used_s = math.max(0, at - had.since) / had.parts  -- runs of one prompt share its time
  redis.call('HSET', run_key(run), 'used_s', sched_text(used_s))
  for _, member in ipairs({ had.owner, had.tenant }) do
    local account = sched_account(member)
    if used_s > had.charged_s then
      sched_charge(account, used_s - had.charged_s)
    else
      account.credit = account.credit + (had.charged_s - used_s) / account.weight
    end
    account.active, account.present = math.max(0, account.active - 1), math.max(0, account.present - 1)
    sched.dirty[member] = account
    sched_forget_if_gone(account)
  end
  sched_flush()
  if not had.node then return end
  local node = sched_node(had.node)
  if node.run ~= run then return end
  sched_call('HSET', sched_node_key(node.name), 'free_at', SCHED.IDLE, 'run', '')
  node.free_at = SCHED.IDLE
  if node.pool and not node.off then sched_list_node(node) end
end

-- A run has taught a profile's time: a mean in which one odd run counts for little.  From a run that loaded models, a first guess.
local function sched_learn_run(profile, seconds, loaded)
  local key = sched_profile_key(profile)
  local f = fields(key, 'run_s', 'runs')
  local mean, runs = sched_number(f[1], nil), sched_number(f[2], 0)
  if loaded then
    if runs > 0 then return end
    mean = mean and math.min(mean, seconds) or seconds
  elseif runs == 0 or not mean then
    mean, runs = seconds, 1
  else
    runs = runs + 1
    mean = mean + math.max(0.1, 1 / runs) * (math.min(math.max(seconds, mean / 4), mean * 4) - mean)
  end
  sched_call('HSET', cleared(key, 'hash'), 'run_s', sched_text(math.max(mean, 0.001)), 'runs', runs)
  redis.call('EXPIRE', key, SCHED.KEPT_S)
end

-- Learn how fast a node loads, by a run's time without the computing. A profile's first run on a node is the one that loads: then
-- the next one there that loads nothing tells how long the computing took.
local function sched_learn_load(had, profile, loaded)
  local key = sched_node_key(had.node)
  if not loaded then
    local open = sched_list(fields(key, 'unmeasured')[1])
    if open[1] ~= profile then return end
    sched_call('HDEL', key, 'unmeasured')
    local used_s, disk, memory = sched_number(open[2], 0), sched_number(open[3], 0), sched_number(open[4], 0)
    return sched_measured(had.node, disk, memory, used_s - had.used_s)
  end
  local known = fields(sched_profile_key(profile), 'run_s', 'runs')
  if sched_number(known[2], 0) > 0 then
    sched_measured(had.node, had.disk, had.memory, had.used_s - sched_number(known[1], 0) / had.speed)
  elseif redis.call('EXISTS', key) == 1 then
    local open = { profile, sched_text(had.used_s), sched_text(had.disk), sched_text(had.memory) }
    sched_call('HSET', key, 'unmeasured', cjson.encode(open))
  end
end

-- A run that computed everything has succeeded: learn how long its profile's runs take, and how fast its node loads.
local function sched_learn(run, profile)
  local had = sched_of_run(run)
  if not had or not had.used_s then return end
  local loaded = had.disk + had.memory > 0
  if had.node and (not loaded or had.load_s >= 0.5) then sched_learn_load(had, profile, loaded) end
  local seconds = loaded and math.max(had.used_s - had.load_s, had.used_s / 10) or had.used_s
  for _, each in ipairs({ profile, '*' }) do sched_learn_run(each, seconds * had.speed, loaded) end
end

-- Of nodes that hold a family and serve a queue, those that are free first: {name, when it is free, -1: it is} of each.
local function sched_first_holders(C, F)
  local found = {}
  for _, pool in ipairs(sched_pools_of(C)) do
    local listed = sched_call('ZRANGE', sched_holders_key(pool, F), 0, 3, 'WITHSCORES')
    for i = 1, #listed, 2 do found[#found + 1] = { listed[i], tonumber(listed[i + 1]) } end
  end
  table.sort(found, function(a, b) return a[2] < b[2] end)
  return found
end

-- An idle node that has a waiting job's models on its card, or nil.
local function sched_idle_holder(id)
  local job = sched_job(id)
  if not job or job.family == '' then return nil end
  for i, each in ipairs(sched_first_holders(job.placement, job.family)) do
    if i > 4 or each[2] ~= SCHED.IDLE then return nil end
    if sched_free(each[1]) then return each[1] end
  end
end

-- Why a job waits, as facts: {its place among its owner's jobs there (from 0), when it is overdue or '', a node that has its
-- models or '', when that is free (-1: it is) or '', 1 if its owner has used its share, 1 if its tenant has}, the first owners of its
-- tenant there, and the first tenants.  nil if it does not wait.
local function sched_place(id)
  local job = sched_job(id)
  local place = job and sched_call('ZRANK', sched_jobs_key(job.placement, job.owner), id)
  if not place then return nil end
  local C, O, T = job.placement, job.owner, job.tenant
  local G, R, tenant = sched_group(C, T), sched_group(C), '/' .. T
  local holder = job.family ~= '' and sched_first_holders(C, job.family)[1] or { '', '' }
  local first = sched_call('ZRANGE', sched_owners_key(G), 0, 2, 'WITHSCORES')
  local used = first[1] ~= O and tonumber(first[2] or 0) < sched_tag(G, O)
  local tenants = sched_tenanted() and sched_call('ZRANGE', sched_owners_key(R), 0, 2, 'WITHSCORES') or {}
  local tenant_used = tenants[1] and tenants[1] ~= tenant and tonumber(tenants[2] or 0) < sched_tag(R, tenant)
  return { place, job.overdue_at and sched_text(job.overdue_at) or '', holder[1], tostring(holder[2]), used and 1 or 0,
    tenant_used and 1 or 0 }, first, tenants
end
