-- Where a waiting job stands: domain/schedule/read_standing.py, in a few commands whatever waits.

-- Whether two queues have nodes in common, by the pools in their names; of `*` all.
local function sched_share_pools(C, other)
  local mine, theirs = string.match(C, '^[^:]*'), string.match(other, '^[^:]*')
  if mine == theirs or mine == '*' or theirs == '*' then return true end
  for pool in string.gmatch(theirs, '[^>]+') do
    if string.find('>' .. mine .. '>', '>' .. pool .. '>', 1, true) then return true end
  end
  return false
end

-- Other queues whose jobs wait for the same nodes, {C = how many} of some; how many queues and jobs these are, and how many jobs
-- wait in the queue itself.
local function sched_beside(C)
  local found, queues, jobs, own = {}, 0, 0, nil
  local counts = sched_call('HRANDFIELD', sched_count_key, SCHED.FILES, 'WITHVALUES')
  for i = 1, #counts, 2 do
    local count = sched_number(counts[i + 1], 0)
    if counts[i] == C then
      own = count
    elseif sched_share_pools(C, counts[i]) then
      found[counts[i]], queues, jobs = count, queues + 1, jobs + count
    end
  end
  return found, queues, jobs, own or sched_number(sched_call('HGET', sched_count_key, C), 1)
end

-- How many of a job's owner's jobs go before it in queues beside.
local function sched_earlier_beside(job, beside)
  local order, earlier, looked = '(' .. sched_text(sched_order(job)), 0, 0
  for _, field in ipairs(sched_call('HKEYS', sched_used_key(job.owner))) do
    local other = string.match(field, '^=([^\t]*)')
    if other and beside[other] and looked < 2 then
      looked = looked + 1
      earlier = earlier + sched_call('ZCOUNT', sched_jobs_key(other, job.owner), '-inf', order)
    end
  end
  return earlier
end

-- What the jobs of a queue compute together, in seconds.  If very many families wait, some stand for all.
local function sched_queue_s(C)
  local listed, seconds = sched_call('HRANDFIELD', sched_backlog_key(C), SCHED.FILES, 'WITHVALUES'), 0
  sched.backlogs[C] = sched.backlogs[C] or {}
  for i = 1, #listed, 2 do
    local backlog = sched_parsed(listed[i + 1])
    sched.backlogs[C][listed[i]] = backlog
    if backlog then seconds = seconds + sched_seconds(backlog) end
  end
  if #listed < 2 * SCHED.FILES then return seconds end
  return seconds * redis.call('HLEN', sched_backlog_key(C)) / SCHED.FILES
end

-- How long a job probably computes, and 1 if jobs of its kind taught that, else 0; nil if nothing is known of any.
local function sched_expected(run_s, profile)
  local known = sched_number(run_s, nil) or sched_run_s(profile or 'graph')
  if known then return known, 1 end
  known = sched_number(fields(sched_profile_key('*'), 'run_s')[1], nil)
  sched.guesses['*'] = known
  return known, 0
end

-- A job's standing, or nil: nothing is known of how long jobs take.  place: among its owner's jobs;  first, tenants: as
-- sched_place says;  held_in_s: in how many seconds a node with its models is free, or nil;  node: the one that is free first,
-- or nil.
local function sched_standing(id, place, first, tenants, held_in_s, node)
  local job = sched_job(id)
  local run_s, own_kind = sched_expected(job.f.run_s, job.f.profile)
  if not run_s then return nil end
  job.run_s = run_s
  local C, O, F, T = job.placement, job.owner, job.family, job.tenant
  local G, R = sched_group(C, T), sched_group(C)
  local account, sampled, sampled_s = sched_account(O, G), 0, 0
  local before = place > 0 and sched_call('ZRANGE', sched_jobs_key(C, O), math.max(0, place - 2), place - 1) or {}
  for _, other in ipairs(before) do
    local its = sched_job(other)
    if its then sampled, sampled_s = sampled + 1, sampled_s + its.run_s end
  end
  local beside, queues, foreign, jobs = sched_beside(C)
  local earlier = queues > 0 and sched_earlier_beside(job, beside) or 0
  local others = {}
  for i = 1, #first, 2 do
    local other = first[i]
    if other ~= O and #others < 2 then
      local tag = sched_tag(G, other)
      local weight = sched_account(other, G).weight
      others[#others + 1] = { tag, weight, redis.call('ZCARD', sched_jobs_key(C, other)) }
    end
  end
  local function share(tenant) return { sched_tag(R, tenant), sched_account(tenant, R).weight } end
  local theirs = {}
  for i = 1, #tenants, 2 do
    if tenants[i] ~= '/' .. T and #theirs < 2 then theirs[#theirs + 1] = share(tenants[i]) end
  end
  local backlog_s = sched_queue_s(C)
  local family = sched_backlog(C, F)
  local loads = sched_loads_key(C, O, F)
  return { run_s = run_s, own_kind = own_kind, load_s = node and sched_load_s(sched_node(node), job) or 0, tag = sched_tag(G, O),
    tenant = sched_tenanted() and share('/' .. T) or { 0, 1 }, tenants = theirs,
    weight = account.weight, ahead = place, own = redis.call('ZCARD', sched_jobs_key(C, O)),
    own_s = sampled > 0 and sampled_s / sampled or run_s, beside = earlier,
    jobs = jobs, jobs_s = backlog_s,
    owners = #others < 2 and #others + 1 or redis.call('ZCARD', sched_owners_key(G)), others = others,
    foreign = math.max(0, foreign - earlier), queues = queues, family_s = family and sched_seconds(family) or run_s,
    family_own = sched_call('ZCARD', loads), family_ahead = sched_call('ZRANK', loads, id) or 0,
    holders = held_in_s and sched_holder_count(C, F) or 0, held_in_s = held_in_s or 0 }
end

-- What became of an estimate: the last ones, for those to come.  ratio: real seconds over estimated ones.
local function sched_note_error(kind, ratio)
  if ratio ~= ratio or ratio > 1e6 then return end
  sched_call('LPUSH', sched_errors_key(kind), string.format('%.5g', math.max(ratio, 0)))
  redis.call('LTRIM', sched_errors_key(kind), 0, 255)
end
