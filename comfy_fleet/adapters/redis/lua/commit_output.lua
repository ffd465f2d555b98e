-- Commit an output of a run whose bytes are there.  args: run, token, job, output: see outputs.lua.
-- Returns {id, path} of its asset, or {} if the lease is gone: the job has another run now, or the run another token.
-- Another id: the job has this file already.  Another path: the same bytes are stored there already.
-- A run's outputs are accepted under any layout, like the run's end.
local id = job_of_run(args.run, args.token, args.job)
if not id then return {} end
despite_full()
args.output.record.job_id = id
return { commit_output(id, args.run, args.output) }
