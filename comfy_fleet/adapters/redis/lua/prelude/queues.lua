-- Waiting jobs, and the runs that hold nodes.

-- A job waits from now on; its record is complete.  able: names of some nodes that can run it.
local function enqueue(id, rank, at, able)
  sched_call('ZADD', queued_key, rank, id)
  sched_add(id, at, able)
end

-- A job no longer waits; the indexes by which claims choose are the caller's business.  Returns whether it did.
local function unqueue(id)
  local waited = sched_call('ZREM', queued_key, id) == 1
  redis.call('ZREM', deadlines_key, id)
  return waited
end

-- A job no longer waits.  placement: what its record says, or false if that can't be read.
local function dequeue(id, placement)
  if not unqueue(id) and placement then  -- perhaps an earlier version has queued it
    redis.call('ZREM', queue_key(placement), id)
    if redis.call('EXISTS', queue_key(placement)) == 0 then redis.call('SREM', placements_key, placement) end
  end
  sched_remove(id)
end

-- Let jobs wait here that a version before layout 3 has queued or given back.  Returns how many it looked at.
local function adopt(most)
  local classes, at, looked = redis.pcall('SRANDMEMBER', placements_key, most), now(), 0
  if classes.err then return 0 end  -- somebody put something else there
  for _, placement in ipairs(classes) do
    if looked >= most then break end
    local key = queue_key(placement)
    local waiting = redis.pcall('ZRANGE', key, 0, most - looked - 1, 'WITHSCORES')
    for i = 1, #waiting, 2 do
      local f = fields(job_key(waiting[i]), 'status', 'placement')
      if f[1] == 'queued' then enqueue(waiting[i], waiting[i + 1], at, {}) end
      redis.call('ZREM', key, waiting[i])
    end
    looked = looked + math.max(1, #waiting / 2)
    if waiting.err or redis.call('EXISTS', key) == 0 then redis.call('SREM', placements_key, placement) end
  end
  return looked
end

-- 1 for the next job, 0 for one that does not wait.
local function place_of(id)
  local place = sched_call('ZRANK', queued_key, id)
  return place and place + 1 or 0
end

-- Tell dispatchers that a job waits, and which idle node has its models, if one has.
local function wake_for(id, placement)
  local node = sched_idle_holder(id)
  redis.call('PUBLISH', wake_key, (node and 'job@' .. node or 'job') .. ' ' .. placement)
end

-- Remove a run and what it holds; the caller handles the job.
local function drop_run(run, id, node)
  redis.call('ZREM', runs_key, run)  -- first: what is taken away may be written in a full Redis, and all that follows
  sched_left(run, now())
  if node and redis.call('HGET', node_key(node), 'cleans') == '1' then
    local folder = fields(run_key(run), 'folder')[1]  -- of another job, if it was handed over
    redis.call('SADD', cleared(job_cleanups_key(id), 'set'), node .. ' ' .. run .. (folder and ' ' .. folder or ''))
  end
  if node and redis.call('GET', lease_key(node)) == run then
    redis.call('DEL', lease_key(node))
  end
  if node then redis.call('SREM', node_runs_key(node), run) end
  bounds_end(run)
  redis.call('DEL', run_key(run))
  rq_drop_run(id, run)
end

-- The run that occupies a node, or nil.  An unknown run holds nothing.
local function holder_of(node)
  local run = redis.call('GET', lease_key(node))
  if run and fields(run_key(run), 'job')[1] then return run end
  if run then redis.call('DEL', lease_key(node)) end
  return nil
end

-- The value of a JSON text; an empty table if it is broken: one bad record must not stop other work.
local function decoded(text)
  local ok, found = pcall(cjson.decode, text)
  return ok and type(found) == 'table' and found or {}
end

-- Store an error on a node, for operators.
local function note_error(node, id, err, at)
  if not node or err == '' or redis.call('HEXISTS', nodes_key, node) == 0 then return end
  local told = cjson.decode(err)
  -- An operator's order is not an error, and the fleet's own disk is not the node's fault.
  if told.code == 'released' or told.code == 'insufficient_storage' then return end
  local key = node_errors_key(node)
  redis.call('LPUSH', key, cjson.encode({ at = at, job = id, code = told.code, message = told.message }))
  redis.call('LTRIM', key, 0, 9)
  redis.call('EXPIRE', key, 604800)
end
