-- How a job is canceled.

-- running: only if it runs.  Returns the facts for observers if it ends here, else its state, or ''.
local function cancel_job(id, running)
  local key = job_key(id)
  local f = fields(key, 'status', 'placement', 'run', 'node', 'flight', 'follows')
  local status = f[1]
  if not status then return '' end
  if status == 'queued' and running then return status end
  local live = status == 'queued' or status == 'running'
  -- A follower leaves alone; the run of a leader goes on for those that follow it.
  if live and f[5] and (f[6] or (status == 'running' and hand_run_over(f[5], id, f[3], f[4], now()))) then
    local ended = end_queued(id, f[2], 'canceled', '', '', now())
    redis.call('HSET', key, 'cancel', 1)
    return ended
  end
  if status == 'queued' then
    local ended = end_queued(id, f[2], 'canceled', '', '', now())  -- first: a full Redis lets it free memory
    redis.call('HSET', key, 'cancel', 1)
    return ended
  end
  if status == 'running' then
    redis.call('HSET', key, 'cancel', 1, 'status', 'canceling')
    publish_status(id, 'canceling', f[3], f[4])
    redis.call('PUBLISH', wake_key, 'cancel ' .. f[3])
    return 'canceling'
  end
  return status
end
