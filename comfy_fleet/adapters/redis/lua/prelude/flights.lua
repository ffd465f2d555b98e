-- Equal jobs that wait or run share one run (docs/adr/0044).  A flight is known by the job that began it; its leader waits and
-- runs like any job, the others follow: they are in no queue.

local MOST_FOLLOWERS = 250
local SETTLED_AT_ONCE = 300  -- followers that one call ends, and outputs that it gives them: about ten milliseconds
local settled = 0  -- so many of them were in this call

-- Followers that this call has ended: {id, workflow, seconds since the submit, tenant, status}, facts for observers.
local ended_followers = {}

-- A follower's state is its leader's: say so where it is not.  status: queued | running.
local function follow_status(id, status, node, at)
  local key = job_key(id)
  local f = fields(key, 'status', 'deadline')
  if (f[1] ~= 'queued' and f[1] ~= 'running') or f[1] == status then return end
  redis.call('HDEL', key, 'progress', 'node', 'run')
  if status == 'running' then
    redis.call('HSET', key, 'status', status, 'run', '', 'node', node)  -- no run of its own: earlier versions want a text
    if redis.call('HSETNX', key, 'started', num(at)) == 1 then webhook_tell(id, 'started', at) end
    redis.call('ZREM', deadlines_key, id)
  else
    redis.call('HSET', key, 'status', status)
    if f[2] then redis.call('ZADD', deadlines_key, f[2], id) end
  end
  publish_status(id, status, nil, node)
end

-- Followers of a leader whose state has changed.
local function flight_status(flight, status, node, at)
  for _, id in ipairs(redis.call('ZRANGE', flight_jobs_key(flight), 0, -1)) do follow_status(id, status, node, at) end
end

local function flight_progress(flight, data)
  for _, id in ipairs(redis.call('ZRANGE', flight_jobs_key(flight), 0, -1)) do
    if fields(job_key(id), 'status')[1] == 'running' then
      redis.call('HSET', job_key(id), 'progress', data)
      publish(id, 'progress', nil, data)
    end
  end
end

-- A job stands where the better of two would.
local function best_rank(id, other)
  local key = job_key(id)
  local own, its = fields(key, 'rank', 'tier', 'finish_by'), fields(job_key(other), 'rank', 'tier', 'finish_by')
  local better = false
  for i, name in ipairs({ 'rank', 'tier', 'finish_by' }) do
    local a, b = tonumber(own[i] or '') or (i == 2 and 1 or math.huge), tonumber(its[i] or '') or (i == 2 and 1 or math.huge)
    if b < a then
      redis.call('HSET', key, name, its[i] or '1')
      better = true
    end
  end
  return better
end

-- The flight in which a new job could take part: {flight, leader, its state, node, graph}, or nil.
local function open_flight(owner, hash)
  local began = redis.call('GET', flight_of_key(owner, hash))
  if not began then return nil end
  local flight = fields(job_key(began), 'flight')[1] or began
  local leader = redis.call('GET', flight_key(flight)) or began
  local f = fields(job_key(leader), 'status', 'owner', 'node', 'graph', 'cancel', 'batch')
  if (f[1] ~= 'queued' and f[1] ~= 'running') or f[2] ~= owner or f[5] == '1' then return nil end
  if f[1] == 'running' and f[6] then return nil end  -- what it makes depends on the others of its batch
  if redis.call('ZCARD', flight_jobs_key(flight)) >= MOST_FOLLOWERS then return nil end
  return { flight = flight, leader = leader, status = f[1], node = f[3], graph = f[4] }
end

-- A new job, whose record is complete and says queued, follows a leader.
local function join_flight(found, id, at)
  local flight, leader = found.flight, found.leader
  redis.call('SET', flight_key(flight), leader)
  redis.call('HSET', job_key(leader), 'flight', flight)
  redis.call('HSET', job_key(id), 'flight', flight, 'follows', 1)
  redis.call('ZADD', flight_jobs_key(flight), num(at), id)
  redis.call('ZADD', flights_key, 'NX', num(at), flight)
  for _, each in ipairs({ leader, id }) do merge_no_batch(each) end  -- its result is for all that follow, now or later
  if found.status == 'running' then return follow_status(id, 'running', found.node or '', at) end
  if best_rank(leader, id) then
    redis.call('ZADD', queued_key, fields(job_key(leader), 'rank')[1], leader)
    sched_add(leader, at, {})
  end
end

local function end_flight(flight)
  redis.call('DEL', flight_key(flight), flight_jobs_key(flight))
  redis.call('ZREM', flights_key, flight)
end

-- The job that waits and runs for a job: its leader, or itself.
local function led_by(id)
  local f = fields(job_key(id), 'follows', 'flight')
  return f[1] and f[2] and redis.call('GET', flight_key(f[2])) or id
end

-- The first follower that is to be the leader from now on, and its state, or nil; it is taken from the others.
local function next_leader(flight, before)
  while true do
    local id = redis.call('ZRANGE', flight_jobs_key(flight), 0, 0)[1]
    if not id then return nil end
    redis.call('ZREM', flight_jobs_key(flight), id)
    local status = fields(job_key(id), 'status')[1]
    if status == 'queued' or status == 'running' then
      redis.call('SET', flight_key(flight), id)
      redis.call('HDEL', job_key(id), 'follows')
      local f = fields(job_key(before), 'attempt', 'placement', 'bust')
      for i, name in ipairs({ 'attempt', 'placement', 'bust' }) do
        if f[i] then redis.call('HSET', job_key(id), name, f[i]) end
      end
      best_rank(id, before)
      return id, status
    end
  end
end

-- The leader is over without a result that all could have: a follower waits in its place.
local function promote_follower(flight, before, at)
  local id, status = next_leader(flight, before)
  if not id then return end_flight(flight) end
  if status ~= 'queued' then  -- else the others wait, too: a queue of followers may be emptied one by one
    flight_status(flight, 'queued', nil, at)
    follow_status(id, 'queued', nil, at)
  end
  local f = fields(job_key(id), 'placement', 'rank')
  enqueue(id, f[2], at, {})
  wake_for(id, f[1])
end

-- A leader that runs is canceled, and others want its result: the run is the first follower's from now on, with what there is of
-- its outputs.  Returns whether there was one.
local function hand_run_over(flight, leader, run, node, at)
  if fields(run_key(run), 'merged')[1] then return false end  -- it is others' prompt, too: who follows is computed anew
  local id = next_leader(flight, leader)
  if not id then
    end_flight(flight)
    return false
  end
  local was = fields(run_key(run), 'dispatcher', 'folder', 'served')
  -- Where its files are on the node, and for whom its dispatcher may think that it is.
  redis.call('HSET', run_key(run), 'job', id, 'folder', was[2] or leader, 'served', (was[3] and was[3] .. ' ' or '') .. leader)
  follow_status(id, 'running', node, at)
  local naming = fields(job_key(leader), 'naming', 'progress')
  redis.call('HSET', job_key(id), 'run', run, 'node', node)
  if naming[1] then redis.call('HSET', job_key(id), 'naming', naming[1]) end
  if naming[2] then redis.call('HSET', job_key(id), 'progress', naming[2]) end
  for _, keys in ipairs({ { job_outputs_key(leader), job_outputs_key(id) }, { job_names_key(leader), job_names_key(id) },
    { job_ui_key(leader), job_ui_key(id) }, { asset_outputs_key(leader), asset_outputs_key(id) } }) do
    if redis.call('EXISTS', keys[1]) == 1 then redis.call('RENAME', keys[1], keys[2]) end
  end
  for _, asset in ipairs(redis.call('HVALS', cleared(asset_outputs_key(id), 'hash'))) do
    redis.call('HSET', asset_key(asset), 'job_id', id)
  end
  for _, output in ipairs(redis.call('HVALS', cleared(job_outputs_key(id), 'hash'))) do publish(id, 'output', nil, output) end
  rq_drop_run(leader, run)
  rq_start(id, run, was[1] or '', at)
  publish_status(id, 'running', run, node)
  return true
end

-- What becomes of followers whose leader is over; those of a live one are in its state.  Of very many, some wait for the next
-- call.  end_job: the function.
local function settle_flight(flight, at, end_job)
  local leader = redis.call('GET', flight_key(flight)) or flight
  local f = fields(job_key(leader), 'status', 'node', 'removed', 'error', 'naming', 'run', 'progress', 'batch')
  if f[1] == 'queued' or f[1] == 'running' then return flight_status(flight, f[1], f[1] == 'running' and f[2] or nil, at) end
  if f[1] == 'canceling' then return end
  local shared = f[1] == 'succeeded' and not f[3] and not f[8] and shared_outputs(leader, f[5])
  local failed = f[1] == 'failed' and f[4] and decoded(f[4]).code ~= 'internal_error'
  if not shared and not failed then return promote_follower(flight, leader, at) end
  local each = 1 + (shared and #shared.outputs or 0)
  for _, id in ipairs(redis.call('ZRANGE', flight_jobs_key(flight), 0, math.floor(SETTLED_AT_ONCE / each))) do
    if settled > 0 and settled + each > SETTLED_AT_ONCE then return end
    settled = settled + each
    local key = job_key(id)
    local j = fields(key, 'status', 'owner', 'expires_in', 'workflow', 'created', 'tenant')
    if j[1] == 'queued' or j[1] == 'running' then
      redis.call('HDEL', key, 'node', 'run')  -- the run is not counted again
      redis.call('ZREM', deadlines_key, id)
      if shared then
        give_outputs(shared, leader, id, j[2], at + (tonumber(j[3] or '') or 604800), at, true)
        redis.call('HSETNX', key, 'started', num(at))
        redis.call('HSET', key, 'cached', leader)
        end_job(id, 'succeeded', '', '', at, f[7] or nil)
      else
        end_job(id, 'failed', f[4], '', at)
      end
      redis.call('HSET', key, 'run', f[6] or '', 'node', f[2] or '')
      ended_followers[#ended_followers + 1] = { id, j[4] or '', num(at - (tonumber(j[5] or '') or at)), j[6] or '', f[1] }
    end
    redis.call('ZREM', flight_jobs_key(flight), id)
  end
  if redis.call('EXISTS', flight_jobs_key(flight)) == 0 then end_flight(flight) end
end

-- A job that takes part in a flight is over.
local function left_flight(id, flight, follows, at, end_job)
  if follows then
    redis.call('ZREM', flight_jobs_key(flight), id)
  elseif redis.call('GET', flight_key(flight)) == id then
    settle_flight(flight, at, end_job)
  end
end

-- Look after flights whose leaders earlier versions have moved or ended, and after followers that were too many for one call.
local function tend_flights(most, at, end_job)
  for _, flight in ipairs(redis.call('ZRANGE', cleared(flights_key, 'zset'), 0, most - 1)) do
    if settled >= SETTLED_AT_ONCE then return end
    redis.call('ZADD', flights_key, 'XX', num(at), flight)
    if redis.call('EXISTS', flight_jobs_key(flight)) == 0 then end_flight(flight) else settle_flight(flight, at, end_job) end
  end
end
