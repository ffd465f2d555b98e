-- Draw the names under which a job's owner sees its files: each (job, node, key, index) has one for ever.
-- args: run, token, job, owner, most (counters of one owner), groups (as for draw_names; see output_names.py).
-- Returns the files' paths in their order, or {} if the lease is gone.
local id, owner = job_of_run(args.run, args.token, args.job), args.owner
if not id then return {} end
despite_full()
local _, paths = draw_names(id, owner, args.most, args.groups)
note_naming(id, args.groups)
return paths
