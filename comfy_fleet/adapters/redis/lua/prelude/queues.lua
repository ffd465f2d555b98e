-- Queues of waiting jobs, and the runs that hold nodes.

local function enqueue(id, placement, rank, front)
  redis.call('ZADD', queue_key(placement), rank, id)
  redis.call('SADD', placements_key, placement)
  rq_enqueue(id, front)
end

-- 1 for the next job, 0 for one that does not wait.
local function place_of(id, placement)
  local rank = redis.call('ZSCORE', queue_key(placement), id)
  if not rank then return 0 end
  local place = 1
  for _, other in ipairs(redis.call('SMEMBERS', placements_key)) do
    place = place + redis.call('ZCOUNT', queue_key(other), '-inf', '(' .. rank)
  end
  return place
end

local function dequeue(id, placement)
  redis.call('ZREM', queue_key(placement), id)
  if redis.call('EXISTS', queue_key(placement)) == 0 then
    redis.call('SREM', placements_key, placement)
  end
  rq_dequeue(id)
  redis.call('ZREM', deadlines_key, id)
end

-- Remove a run and what it holds; the caller handles the job.
local function drop_run(run, id, node)
  if node and redis.call('HGET', node_key(node), 'cleans') == '1' then
    redis.call('SADD', cleared(job_cleanups_key(id), 'set'), node .. ' ' .. run)
  end
  if node and redis.call('GET', lease_key(node)) == run then
    redis.call('DEL', lease_key(node))
  end
  if node then redis.call('SREM', node_runs_key(node), run) end
  redis.call('ZREM', runs_key, run)
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
