-- Compare RQ's records of live jobs with ours: tell RQ what has begun, and return what is for the caller to do.
-- args: most (jobs).
-- Returns {id, job, 'cancel'}: its client wishes it | {id, job, 'ended', stopped ('1'), INBOX_FIELDS} | {id, job, 'progress', progress (JSON), meta}.
local MOST_BYTES = 4194304  -- of one answer
local at, rows, looked, size = now(), {}, {}, 0

-- Returns what is to do for a job, if anything.
local function look(id)
  if looked[id] then return end
  looked[id] = true
  local link = fields(inbox_job_key(id), 'job', 'created', 'running', 'progress', 'beat', 'stopped', 'state')
  local job = link[1]
  if not job or link[7] ~= 'live' then
    if not job then redis.call('ZREM', inbox_live_key, id) end
    return
  end
  redis.call('ZADD', inbox_live_key, num(at), id)
  local f = fields(job_key(job), 'status', 'run', 'started', 'progress')
  local live = f[1] == 'queued' or f[1] == 'running' or f[1] == 'canceling'
  if not inbox_same(id, link[2]) then
    if link[3] then inbox_left(id, link[3]) end
    if live then return { id, job, 'cancel' } end
    return inbox_drop(id)
  end
  if not live then
    local values = inbox_values(id, 0)
    for _, value in ipairs(values) do size = size + #value end
    return { id, job, 'ended', link[6] or '', unpack(values) }
  end
  local status = inbox_value(id, 'status', 32)
  if status == 'canceled' or status == 'stopped' then return { id, job, 'cancel' } end
  if f[1] ~= 'queued' and f[2] and f[2] ~= link[3] then
    if link[3] then inbox_left(id, link[3]) end
    inbox_started(id, f[2], fields(run_key(f[2]), 'dispatcher')[1] or '', tonumber(f[3] or '') or at, at)
  elseif f[1] == 'queued' and link[3] then
    inbox_left(id, link[3])
    redis.call('HDEL', inbox_job_key(id), 'running')
    redis.pcall('HSET', rq_job_key(id), 'status', 'queued', 'enqueued_at', iso(at), 'worker_name', '')
  elseif link[3] and at - (tonumber(link[5] or '') or 0) > RQ_BEAT_S then
    redis.call('HSET', inbox_job_key(id), 'beat', num(at))
    redis.pcall('HSET', rq_job_key(id), 'last_heartbeat', iso(at))
  end
  if f[4] and f[4] ~= link[4] then
    local meta = inbox_value(id, 'meta', 65536)
    if meta then
      size = size + #meta
      return { id, job, 'progress', f[4], meta }
    end
  end
end

local changed = redis.call('SRANDMEMBER', inbox_changed_key, 200)
for _, id in ipairs(changed) do
  if size > MOST_BYTES then break end
  redis.call('SREM', inbox_changed_key, id)
  rows[#rows + 1] = look(id)
end
for _, id in ipairs(redis.call('ZRANGE', inbox_live_key, 0, args.most - 1)) do
  if size > MOST_BYTES then break end
  rows[#rows + 1] = look(id)
end
return rows
