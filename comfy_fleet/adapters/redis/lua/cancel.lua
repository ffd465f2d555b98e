-- Ask for cancellation.  ARGV: job.  Returns the job's state, or '' if there is no such job.
local id = ARGV[1]
local key = jobkey(id)
local f = fields(key, 'status', 'placement', 'run', 'node')
local status = f[1]
if not status then return '' end
if status == 'queued' then
  dequeue(id, f[2])
  redis.call('HSET', key, 'cancel', 1)
  end_job(id, 'canceled', '', '', now())
  return 'canceled'
end
if status == 'running' then
  redis.call('HSET', key, 'cancel', 1, 'status', 'canceling')
  publish_status(id, 'canceling', f[3], f[4])
  redis.call('PUBLISH', 'fleet:wake', 'cancel ' .. f[3])
  return 'canceling'
end
return status
