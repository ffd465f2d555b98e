-- How far a job's run is in time, or its leader's.  args: job.
-- Returns {seconds since its start, seconds that it probably takes from there, 1 if jobs of its kind taught that, else 0}, or {} if
-- it does not run, or nothing is known of how long jobs take; zeros if it has just ended.
local f = fields(job_key(led_by(args.job)), 'status', 'run', 'run_s', 'profile')
if not f[1] or f[1] == 'queued' or not f[2] then return {} end
if f[1] ~= 'running' and f[1] ~= 'canceling' then return { '0', '0', 1 } end
local had = sched_of_run(f[2])
local run_s, own_kind = sched_expected(f[3], f[4])
if not had or not run_s then return {} end
return { num(math.max(0, now() - had.since)), num(had.load_s + run_s / had.speed), own_kind }
