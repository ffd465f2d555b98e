-- End a run whose job's record can't be read: nobody could go on with it, and it would hold its node for ever.
-- ARGV: run, token, error as JSON, RQ result.  Returns what observers are told of the job if it ends here.
local run = ARGV[1]
if not owned(run, ARGV[2]) then return {} end
local r = redis.call('HMGET', 'fleet:run:' .. run, 'job', 'node')
drop_run(run, r[1], r[2])
local f = redis.pcall('HMGET', jobkey(r[1]), 'completed')
if f.err or f[1] then return {} end
local at = now()
end_job(r[1], 'failed', ARGV[3], ARGV[4], at)
return ended_job(r[1], at)
