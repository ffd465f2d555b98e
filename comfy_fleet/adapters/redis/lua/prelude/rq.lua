-- The mirror: the fleet's own jobs in RQ's layout, for `rq info`, RQ's dashboard and Job.fetch.  It is only written: what others change
-- in it changes nothing.  Whether a job is shown there, its record says: by the field `rq`, which is missing then; it is '' for a job
-- that is not shown, and the id in RQ of one that came from there (inbox.lua).  Others may put anything into these keys: what can't be
-- written there is left out.

-- A time as RQ writes it: 2026-01-31T12:00:00.000000Z
local function iso(t)
  local days, secs = math.floor(t / 86400), t % 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local d = doy - math.floor((153 * mp + 2) / 5) + 1
  local m = mp < 10 and mp + 3 or mp - 9
  local y = yoe + era * 400 + (m <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%09.6fZ', y, m, d,
    math.floor(secs / 3600), math.floor(secs % 3600 / 60), secs % 60)
end

-- The year 3000, when a run's time is up for RQ: its clean-up must never end a run of ours.
local RQ_FAR = 32503680000

-- RQ's own pace.  Leases are renewed much more often.
local RQ_BEAT_S = 30

local RQ_END = { succeeded = { 'finished', rq_finished_key, 1 }, failed = { 'failed', rq_failed_key, 2 },
  expired = { 'failed', rq_failed_key, 2 }, canceled = { 'canceled', rq_canceled_key, 3 } }

local function rq_record(id) return cleared(rq_job_key(id), 'hash') end

-- Whether the mirror shows new jobs.  wanted: 'on', 'off', or 'auto': until there are tenants, whose jobs others must not see.
local function rq_wanted(wanted)
  return wanted == 'on' or (wanted == 'auto' and redis.call('HLEN', tenants_key) == 0)
end

-- Whether the mirror shows a job.  One of RQ's clients is told of its changes later (inbox_look.lua).
local function rq_mirrored(id)
  local known = fields(job_key(id), 'rq')[1]
  if known and known ~= '' then redis.call('SADD', inbox_changed_key, known) end
  return not known
end

-- Most jobs that RQ's list shows.
local RQ_SHOWN = 1000

-- Show the jobs that wait first in RQ's list, which nobody reads for work.
local function rq_show(wanted)
  local list = rq_wanted(wanted) and sched_call('ZRANGE', queued_key, 0, RQ_SHOWN - 1) or {}
  local had = redis.pcall('LLEN', cleared(rq_queue_key, 'list'))
  local same = had == #list
  if same then
    for i, id in ipairs(redis.pcall('LRANGE', rq_queue_key, 0, -1)) do same = same and list[i] == id end
  end
  if same then return end
  redis.pcall('DEL', rq_queue_key)
  if list[1] then redis.pcall('RPUSH', rq_queue_key, unpack(list)) end
end

-- data: what RQ would call, as JSON.
local function rq_submit(id, data, description, at)
  redis.pcall('HSET', rq_job_key(id), 'created_at', iso(at), 'enqueued_at', iso(at), 'status', 'queued',
    'data', data, 'description', description, 'origin', RQ_NAME, 'timeout', -1, 'started_at', '', 'ended_at', '',
    'last_heartbeat', '', 'worker_name', '', 'success_callback_name', '', 'failure_callback_name', '')
  redis.pcall('SADD', rq_queues_key, rq_queue_key)
end

local function rq_start(id, run, who, at)
  if not rq_mirrored(id) then return end
  local key, worker = rq_record(id), WORKER_PREFIX .. who
  redis.pcall('HSET', key, 'status', 'started', 'started_at', iso(at), 'last_heartbeat', iso(at), 'worker_name', worker)
  redis.pcall('PERSIST', key)
  redis.pcall('ZADD', rq_started_key, RQ_FAR, id .. ':' .. run)
  redis.pcall('HSET', rq_execution_key(id, run), 'id', run, 'created_at', num(at), 'last_heartbeat', num(at),
    'worker_name', worker)
  redis.pcall('ZADD', rq_executions_key(id), RQ_FAR, run)
end

-- last: when RQ was last told of this run's life, if ever.  Returns whether it was told now.
local function rq_beat(id, run, last, at)
  if last and at - (tonumber(last) or 0) < RQ_BEAT_S then return false end
  if rq_mirrored(id) then
    redis.pcall('HSET', rq_execution_key(id, run), 'last_heartbeat', num(at))
    redis.pcall('HSET', rq_record(id), 'last_heartbeat', iso(at))
  end
  return true
end

local function rq_take_over(id, who)
  if rq_mirrored(id) then redis.pcall('HSET', rq_record(id), 'worker_name', WORKER_PREFIX .. who) end
end

local function rq_drop_run(id, run)
  if not rq_mirrored(id) then return end
  redis.pcall('ZREM', rq_started_key, id .. ':' .. run)
  redis.pcall('ZREM', rq_inbox_started_key, id .. ':' .. run)  -- of a version before layout 4
  redis.pcall('DEL', rq_execution_key(id, run))
  redis.pcall('ZREM', rq_executions_key(id), run)
end

local function rq_give_back(id, at)
  if not rq_mirrored(id) then return end
  redis.pcall('HSET', rq_record(id), 'status', 'queued', 'enqueued_at', iso(at), 'worker_name', '')
end

-- result: the return value or the exception's text as RQ keeps it, or ''.
local function rq_end(id, status, result, at, expires)
  if not rq_mirrored(id) then return end
  local state, registry, kind = unpack(RQ_END[status])
  redis.pcall('HSET', rq_record(id), 'status', state, 'ended_at', iso(at), 'last_heartbeat', iso(at), 'origin', RQ_NAME)
  redis.pcall('ZADD', registry, num(expires), id)
  redis.pcall('DEL', rq_executions_key(id))
  local entry = { 'XADD', cleared(rq_results_key(id), 'stream'), 'MAXLEN', 10, '*', 'type', kind }
  if result ~= '' then
    entry[#entry + 1] = status == 'succeeded' and 'return_value' or 'exc_string'
    entry[#entry + 1] = result
  end
  redis.pcall(unpack(entry))
end

-- A job that is over stays longer, or less long.
local function rq_stays(id, status, expires)
  local ended = RQ_END[status]
  if ended and rq_mirrored(id) then redis.pcall('ZADD', ended[2], 'XX', num(expires), id) end
end

local function rq_forget(id)
  redis.pcall('DEL', rq_job_key(id), rq_results_key(id))
  for _, registry in ipairs({ rq_finished_key, rq_failed_key, rq_canceled_key, rq_inbox_finished_key, rq_inbox_failed_key, rq_inbox_canceled_key }) do
    redis.pcall('ZREM', registry, id)  -- before layout 4, there was one queue in RQ
  end
end
