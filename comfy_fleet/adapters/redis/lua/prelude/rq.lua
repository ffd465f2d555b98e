-- RQ's own layout, kept true for `rq info`, RQ's dashboard and Job.fetch: all that writes its keys.

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

-- Most jobs that RQ's list shows.
local RQ_SHOWN = 1000

-- Show the jobs that wait first in RQ's list, which nobody reads for work; jobs that are not ours stay behind them.
local function rq_show()
  local list = sched_call('ZRANGE', queued_key, 0, RQ_SHOWN - 1)
  local shown = redis.call('LRANGE', cleared(rq_queue_key, 'list'), 0, 2 * RQ_SHOWN - 1)
  local ours, same = {}, true
  for i, id in ipairs(list) do
    ours[id] = true
    same = same and shown[i] == id
  end
  if same and #list == #shown then return end
  for _, id in ipairs(shown) do
    if not ours[id] and redis.call('EXISTS', job_key(id)) == 0 and redis.call('EXISTS', rq_job_key(id)) == 1 then
      list[#list + 1] = id
      same = same and shown[#list] == id
    end
  end
  if same and #list == #shown then return end
  redis.call('LTRIM', rq_queue_key, #shown, -1)
  for last = #list, 1, -RQ_SHOWN do
    local some = {}
    for i = last, math.max(1, last - RQ_SHOWN + 1), -1 do some[#some + 1] = list[i] end
    redis.call('LPUSH', rq_queue_key, unpack(some))
  end
end

-- data: what RQ would call, as JSON.
local function rq_submit(id, data, description, at)
  redis.call('HSET', rq_job_key(id), 'created_at', iso(at), 'enqueued_at', iso(at), 'status', 'queued',
    'data', data, 'description', description, 'origin', RQ_NAME, 'timeout', -1, 'started_at', '', 'ended_at', '',
    'last_heartbeat', '', 'worker_name', '', 'success_callback_name', '', 'failure_callback_name', '')
  redis.call('SADD', rq_queues_key, rq_queue_key)
end

-- Returns what the job's record says that RQ would call.
local function rq_start(id, run, who, at)
  local key, worker = rq_record(id), WORKER_PREFIX .. who
  redis.call('HSET', key, 'status', 'started', 'started_at', iso(at), 'last_heartbeat', iso(at), 'worker_name', worker)
  redis.call('PERSIST', key)
  redis.call('ZADD', rq_started_key, RQ_FAR, id .. ':' .. run)
  redis.call('HSET', rq_execution_key(id, run), 'id', run, 'created_at', num(at), 'last_heartbeat', num(at),
    'worker_name', worker)
  redis.call('ZADD', rq_executions_key(id), RQ_FAR, run)
  return redis.call('HGET', key, 'data')
end

-- last: when RQ was last told of this run's life, if ever.  Returns whether it was told now.
local function rq_beat(id, run, last, at)
  if last and at - (tonumber(last) or 0) < RQ_BEAT_S then return false end
  redis.call('HSET', rq_execution_key(id, run), 'last_heartbeat', num(at))
  redis.call('HSET', rq_record(id), 'last_heartbeat', iso(at))
  return true
end

local function rq_take_over(id, who) redis.call('HSET', rq_record(id), 'worker_name', WORKER_PREFIX .. who) end

local function rq_drop_run(id, run)
  redis.call('ZREM', rq_started_key, id .. ':' .. run)
  redis.call('DEL', rq_execution_key(id, run))
  redis.call('ZREM', rq_executions_key(id), run)
end

local function rq_give_back(id, at)
  redis.call('HSET', rq_record(id), 'status', 'queued', 'enqueued_at', iso(at), 'worker_name', '')
end

-- result: the return value or the exception's text as RQ keeps it, or ''.
local function rq_end(id, status, result, at, expires)
  local state, registry, kind = unpack(RQ_END[status])
  redis.call('HSET', rq_record(id), 'status', state, 'ended_at', iso(at), 'last_heartbeat', iso(at))
  redis.call('ZADD', registry, num(expires), id)
  redis.call('DEL', rq_executions_key(id))
  local entry = { 'XADD', cleared(rq_results_key(id), 'stream'), 'MAXLEN', 10, '*', 'type', kind }
  if result ~= '' then
    entry[#entry + 1] = status == 'succeeded' and 'return_value' or 'exc_string'
    entry[#entry + 1] = result
  end
  redis.call(unpack(entry))
end

-- A job that is over stays longer, or less long.
local function rq_stays(id, status, expires)
  local ended = RQ_END[status]
  if ended then redis.call('ZADD', ended[2], 'XX', num(expires), id) end
end

local function rq_forget(id)
  redis.call('DEL', rq_job_key(id), rq_results_key(id))
  for _, ended in pairs(RQ_END) do redis.call('ZREM', ended[2], id) end
end
