-- The inbox: jobs that RQ's own clients enqueue.  Of RQ's keys it reads what they say, never what to run: that is in our own records.
-- What is in RQ's keys may be anything: of any type, size and name.

-- Most waiting jobs that stay in RQ's list, where its clients see them.
local INBOX_SHOWN = 500

-- What is read of RQ's record, and the most bytes of each; how many of the data, the caller says.
local INBOX_FIELDS = { { 'data' }, { 'meta', 65536 }, { 'timeout', 32 }, { 'ttl', 32 }, { 'result_ttl', 32 }, { 'failure_ttl', 32 },
  { 'success_callback_name', 512 }, { 'failure_callback_name', 512 }, { 'stopped_callback_name', 512 }, { 'success_callback_timeout', 32 },
  { 'failure_callback_timeout', 32 }, { 'stopped_callback_timeout', 32 }, { 'webhooks', 32 }, { 'repeats_left', 32 } }

local function inbox_id(id) return #id <= 100 and string.match(id, '^[%w_-]+$') end

local function inbox_recorded(id) return redis.call('TYPE', rq_job_key(id)).ok == 'hash' end

-- A field of RQ's record; '' if there is none, nil if it is too long.
local function inbox_value(id, name, most)
  local size = redis.call('HSTRLEN', rq_job_key(id), name)
  if size > most then return nil end
  return size > 0 and redis.call('HGET', rq_job_key(id), name) or ''
end

-- Whether RQ's record is that of the entry which was created then: another one may have the same name.
local function inbox_same(id, created)
  return inbox_recorded(id) and (inbox_value(id, 'created_at', 64) or '') == (created or '')
end

-- All of INBOX_FIELDS; those that are too long are '', and the first of them is returned, too.
local function inbox_values(id, most_data)
  local found, long = {}, ''
  for i, field in ipairs(INBOX_FIELDS) do
    local value = inbox_value(id, field[1], i == 1 and most_data or field[2])
    if not value and long == '' then long = field[1] end
    found[i] = value or ''
  end
  return found, long
end

-- Whether an entry waits to become this job.  Another process may have told its end meanwhile, or its client may have sent it anew.
local function inbox_awaits(id, job)
  local link = fields(inbox_job_key(id), 'job', 'state')
  return link[1] == job and link[2] == 'taken'
end

-- The fleet has a job now for what was taken.
local function inbox_accept(id, job)
  redis.call('HSET', inbox_job_key(id), 'state', 'live', 'job', job)
  redis.call('ZREM', inbox_taken_key, id)
  redis.call('ZADD', inbox_live_key, 0, id)
  redis.call('SADD', inbox_changed_key, id)
end

-- Forget an entry.
local function inbox_drop(id)
  redis.call('DEL', inbox_job_key(id))
  redis.call('ZREM', inbox_taken_key, id)
  redis.call('ZREM', inbox_live_key, id)
  redis.call('SREM', inbox_changed_key, id)
end

-- RQ's registry of started jobs has no run any more.
local function inbox_left(id, run)
  redis.pcall('ZREM', rq_inbox_started_key, id .. ':' .. run)
  redis.pcall('DEL', rq_execution_key(id, run), rq_executions_key(id))
end

-- RQ's record says that a run has begun.
local function inbox_started(id, run, dispatcher, started, at)
  local worker = WORKER_PREFIX .. dispatcher
  redis.pcall('HSET', rq_job_key(id), 'status', 'started', 'started_at', iso(started), 'last_heartbeat', iso(at), 'worker_name', worker)
  redis.pcall('LREM', rq_inbox_key, 1, id)
  redis.pcall('ZADD', cleared(rq_inbox_started_key, 'zset'), RQ_FAR, id .. ':' .. run)
  redis.pcall('HSET', cleared(rq_execution_key(id, run), 'hash'), 'id', run, 'created_at', num(started), 'last_heartbeat', num(at), 'worker_name', worker)
  redis.pcall('ZADD', cleared(rq_executions_key(id), 'zset'), RQ_FAR, run)
  redis.call('HSET', inbox_job_key(id), 'running', run, 'beat', num(at))
end

-- Put a job into any queue of RQ's.
local function inbox_enqueue(id, queue, front, at)
  redis.pcall('HSET', rq_job_key(id), 'status', 'queued', 'enqueued_at', iso(at))
  redis.pcall('SADD', rq_queues_key, rq_other_queue_key(queue))
  redis.pcall(front and 'LPUSH' or 'RPUSH', rq_other_queue_key(queue), id)
end

-- Whether all that a job depends on has ended as it wishes.
local function inbox_met(id, after_failure)
  if redis.call('TYPE', rq_dependencies_key(id)).ok ~= 'set' then return true end
  for _, other in ipairs(redis.call('SMEMBERS', rq_dependencies_key(id))) do
    local status = fields(rq_job_key(other), 'status')[1]
    if status and status ~= 'finished' and not (after_failure and status == 'failed') then return false end
  end
  return true
end

-- Enqueue what waited for a job that has ended: by its id alone, its record stays as its client wrote it.
local function inbox_free(id, at)
  local key = rq_dependents_key(id)
  if redis.call('TYPE', key).ok ~= 'set' then return end
  for _, other in ipairs(redis.call('SMEMBERS', key)) do
    if inbox_id(other) and inbox_recorded(other) then
      local queue = inbox_value(other, 'origin', 200) or ''
      local f = fields(rq_job_key(other), 'status', 'allow_dependency_failures', 'enqueue_at_front')
      if f[1] == 'deferred' and queue ~= '' and inbox_met(other, f[2] == '1') then
        redis.pcall('ZREM', rq_other_deferred_key(queue), other)
        redis.call('SREM', key, other)
        inbox_enqueue(other, queue, f[3] == '1', at)
      end
    end
  end
end
