-- Ask for cancellation.  ARGV: job.  Returns what observers are told of it if it ends here, else its state, or ''.
local id = ARGV[1]
local key = jobkey(id)
local f = fields(key, 'status', 'placement', 'run', 'node')
local status = f[1]
if not status then return '' end
if status == 'queued' then
  redis.call('HSET', key, 'cancel', 1)
  return end_queued(id, f[2], 'canceled', '', '', now())
end
if status == 'running' then
  redis.call('HSET', key, 'cancel', 1, 'status', 'canceling')
  publish_status(id, 'canceling', f[3], f[4])
  redis.call('PUBLISH', 'fleet:wake', 'cancel ' .. f[3])
  return 'canceling'
end
return status
