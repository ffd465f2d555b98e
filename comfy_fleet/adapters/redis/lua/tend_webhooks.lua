-- Tell starts and ends of jobs that a version without webhooks has started or ended beside this one.
-- args: every_s (between two looks at a job), most.  Returns how many ends were told.
local at, told = now(), 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', cleared(webhook_jobs_key, 'zset'), '-inf', num(at - args.every_s), 'LIMIT', 0, args.most)) do
  local status = fields(job_key(id), 'status')[1]
  if status == 'queued' or status == 'running' or status == 'canceling' then
    redis.call('ZADD', webhook_jobs_key, num(at), id)
    webhook_tell(id, 'started', at)
  elseif status then
    webhook_tell(id, status, at)
    told = told + 1
  else
    redis.call('ZREM', webhook_jobs_key, id)
  end
end
return told
