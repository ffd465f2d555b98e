-- Commit an output of a run whose bytes are there.  args: run, token, job, output: see outputs.lua.
-- Returns {id, path} of its asset, or {} if the lease is gone: the job has another run now, or the run another token.
-- Another id: the job has this file already.  Another path: the same bytes are stored there already.
-- A run's outputs are accepted under any layout, like the run's end.
local r = fields(run_key(args.run), 'token', 'job')
if r[1] ~= args.token or r[2] ~= args.job then return {} end
return { commit_output(args.job, args.run, args.output) }
