-- The job was not written after all.  args: job, ids.
redis.call('DEL', asset_hold_key(args.job))
for _, id in ipairs(args.ids) do redis.call('SREM', asset_jobs_key(id), args.job) end
return 0
