-- Begin transfers of jobs that a version without stores has ended beside this one.
-- args: every_s (between two looks at a job), most.  Returns how many were begun.
local at, begun = now(), 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', cleared(transfer_jobs_key, 'zset'), '-inf', num(at - args.every_s), 'LIMIT', 0, args.most)) do
  local status = fields(job_key(id), 'status')[1]
  if status == 'queued' or status == 'running' or status == 'canceling' then
    redis.call('ZADD', transfer_jobs_key, num(at), id)
  elseif status == 'succeeded' then
    transfer_begin(id, at)
    begun = begun + 1
  else
    redis.call('ZREM', transfer_jobs_key, id)
  end
end
return begun
