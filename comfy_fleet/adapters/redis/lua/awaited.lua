-- Which node a queued job of an editor waits for, because it has its graph's results.  args: job.
-- Returns {node, seconds at most}, or {} if it waits for none.
local f = fields(job_key(args.job), 'editor', 'patience', 'created')
local there, till = awaited(f[1], f[2], f[3])
if not there or till <= now() then return {} end
return { there, num(till - now()) }
