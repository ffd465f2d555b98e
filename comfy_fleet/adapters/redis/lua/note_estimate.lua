-- Remember the first estimate of a queued job: what becomes of it teaches those to come.
-- args: job, kind, seconds (until its end, as it was estimated before anything was learned).
local key = job_key(args.job)
local f = fields(key, 'status', 'estimate')
if f[1] == 'queued' and not f[2] then
  redis.call('HSET', key, 'estimate', num(now()) .. ' ' .. num(args.seconds) .. ' ' .. args.kind)
end
return 1
