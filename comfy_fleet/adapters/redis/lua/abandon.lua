-- End a run whose job's record can't be read: no dispatcher could go on with it, and it would hold its node for ever.
-- args: run, token.  ARGV: error as JSON, RQ's text of it.
-- Returns the facts for observers if the job ends here.
if not owned(args.run, args.token) then return {} end
local r = redis.call('HMGET', run_key(args.run), 'job', 'node')
drop_run(args.run, r[1], r[2])
local f = redis.pcall('HMGET', job_key(r[1]), 'completed')
if f.err or f[1] then return {} end
local at = now()
end_job(r[1], 'failed', ARGV[2], ARGV[3], at)
return ended_job(r[1], at)
