-- The end of a job and of a run.

-- Names of the copies that Preview3D put into the root of a node's output folder, each after a blank.
local function strays(id)
  local names = ''
  for _, output in ipairs(redis.call('HVALS', cleared(job_outputs_key(id), 'hash'))) do
    local drawn, extension = string.match(output, '"name":"preview3d_(%x+)[_%d]*(%.%w+)"')
    if drawn and #drawn == 32 then names = names .. ' preview3d_' .. drawn .. extension end
  end
  return names
end

-- The job is final: the agents beside its nodes may delete what its runs left there.
local function discard(id, at)
  local key = cleared(job_cleanups_key(id), 'set')
  local last = fields(job_key(id), 'run')[1]  -- whose outputs the job has
  for _, trace in ipairs(redis.call('SMEMBERS', key)) do
    local node, run, folder = string.match(trace, '^(%S+) (%S+) ?(%S*)$')
    local host = redis.call('HGET', node_key(node), 'host')
    if host then
      local cleanup = cleanup_key(host)
      local more = run == last and strays(id) or ''
      redis.call('ZADD', cleanup, num(at), node .. ' ' .. (folder ~= '' and folder or id) .. ' ' .. run .. more)
      redis.call('ZREMRANGEBYSCORE', cleanup, '-inf', num(at - 604800))  -- of a host that never came back
    end
  end
  redis.call('DEL', key)
end

-- A job that ends no longer needs an asset; it stays as long as the job's record, unless its client set its end.
local function let_go(asset, id, expires)
  local key = asset_key(asset)
  redis.call('SREM', asset_jobs_key(asset), id)
  local f = redis.call('HMGET', key, 'renews', 'expires_at', 'kept_from')
  if f[1] and f[3] then  -- a kept job uses it
    if (tonumber(f[3]) or 0) < expires then redis.call('HSET', key, 'kept_from', num(expires)) end
  elseif f[1] and f[2] and tonumber(f[2]) < expires then
    redis.call('HSET', key, 'expires_at', num(expires))
    redis.call('ZADD', asset_expiry_key, num(expires), asset)
  end
end

-- The one way in which a job becomes final; progress: how far it came, as JSON, if that is new.
local function end_job(id, status, err, result, at, progress)
  local key = job_key(id)
  local f = redis.call('HMGET', key, 'expires_in', 'assets', 'run', 'node', 'owner', 'flight', 'follows', 'fetches', 'webhook', 'output')
  local expires = at + (tonumber(f[1] or '') or 604800)
  redis.call('HSET', key, 'status', status, 'completed', num(at), 'expires', num(expires))
  if err ~= '' and status ~= 'canceled' and status ~= 'succeeded' then redis.call('HSET', key, 'error', err) end
  if progress then redis.call('HSET', key, 'progress', progress) end
  redis.call('HDEL', key, 'waits')
  if f[8] then redis.call('ZREM', fetching_key, id) end
  if f[5] then redis.call('ZREM', live_key(f[5]), id) end
  redis.call('DEL', job_secret_key(id), job_preview_key(id))
  redis.call('ZADD', expiring_key, num(expires), id)
  redis.call('LPUSH', cleared(ended_key, 'list'), id)
  redis.call('LTRIM', ended_key, 0, 199)
  for asset in string.gmatch(f[2] or '', '%S+') do let_go(asset, id, expires) end
  rq_end(id, status, result, at, expires)
  if f[4] and redis.call('HEXISTS', nodes_key, f[4]) == 1 then
    local node = node_key(f[4])
    redis.call('HINCRBY', node, status, 1)
    if status == 'succeeded' then redis.call('HDEL', node, 'strikes_oom', 'strikes_gpu', 'strikes_answer', 'strikes_frame', 'renewed') end
    if status == 'failed' then note_error(f[4], id, err, at) end
  end
  discard(id, at)
  publish_status(id, status, f[3], f[4], progress)
  if f[9] then webhook_tell(id, status, at) end
  if f[10] and status == 'succeeded' then transfer_begin(id, at) elseif f[10] then redis.call('ZREM', transfer_jobs_key, id) end
  batch_ended(id, at)
  note_job_usage(id, status, at)
  if f[6] then left_flight(id, f[6], f[7], at, end_job) end
end

-- Facts for observers about a job that ended without the end of a run: {job, workflow, seconds since its submit, tenant}.
-- A field that can't be read is ''.
local function ended_job(id, at)
  local f = redis.pcall('HMGET', job_key(id), 'workflow', 'created', 'tenant')
  if f.err then f = {} end
  return { id, f[1] or '', num(at - (tonumber(f[2] or '') or at)), f[3] or '' }
end

-- End a job that waits; return the facts for observers.
local function end_queued(id, placement, status, err, result, at)
  dequeue(id, placement)
  end_job(id, status, err, result, at)
  return ended_job(id, at)
end

-- A run is over: store its end in its job's record.
-- why: {code, message}, or nil;  counted: whether it uses one of the job's attempts up;
-- times: where its time went, or nil.
local function note_attempt(run, id, node, since, why, counted, at, times)
  local key = job_key(id)
  local had = redis.call('HGET', key, 'attempts')
  local all = had and decoded(had) or {}
  local one = { run = run, node = node, started = tonumber(since) or at, ended = at, counted = counted, error = why, times = times }
  all[#all + 1] = one
  while #all > MAX_ATTEMPTS do table.remove(all, 1) end
  redis.call('HSET', key, 'attempts', cjson.encode(all))
  note_run_usage(run, id, since, at)
end

-- How many listen to the frames of a job's runs: those that follow the job, and those that follow its client.
local function listeners(id)
  local f = fields(job_key(id), 'owner', 'client_id')
  local clients = client_frames_key(f[2] and redis.sha1hex(f[2]) or '', f[1] or '')
  local found = redis.call('PUBSUB', 'NUMSUB', frames_key(id), clients)
  return found[2] + found[4]
end

-- The job that a run is for, if this token owns it and it was claimed for this job; it may have been handed over since.
local function job_of_run(run, token, job)
  local f = fields(run_key(run), 'token', 'job', 'served')
  if f[1] ~= token then return nil end
  if f[2] == job or string.find(' ' .. (f[3] or '') .. ' ', ' ' .. job .. ' ', 1, true) then return f[2] end
end

-- Whether this token still owns the run; a writer that does not must touch nothing.
local function owned(run, token)
  return fields(run_key(run), 'token')[1] == token
end
