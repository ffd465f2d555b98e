-- The jobs of an owner that are not final, by their numbers.  args: owner.  Returns the ids of those that run, and of those that wait.
local running, queued = {}, {}
local key = live_key(args.owner)
for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do
  local status = fields(job_key(id), 'status')[1]
  if status == 'queued' then
    queued[#queued + 1] = id
  elseif status == 'running' or status == 'canceling' then
    running[#running + 1] = id
  else
    mend_job(id, args.owner)  -- a version that knows no such list has ended it
  end
end
return { running, queued }
