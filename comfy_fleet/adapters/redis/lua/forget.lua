-- Remove every trace of a final job.  args: job.  Returns 1 if it was there.
local id = args.job
local f = fields(job_key(id), 'status', 'owner', 'graph', 'prompt_hash')
redis.call('ZREM', expiring_key, id)
if not f[1] then
  redis.call('ZREM', jobs_key, id)
  return 0
end
if redis.call('HINCRBY', graphs_key, f[3], -1) <= 0 then
  redis.call('HDEL', graphs_key, f[3])
  redis.call('DEL', graph_key(f[3]))
end
redis.call('ZREM', jobs_key, id)
redis.call('ZREM', jobs_of_key(f[2]), id)
redis.call('ZREM', live_key(f[2]), id)
unlist_job(id, f[2])
if f[4] and redis.call('GET', prompt_key(f[2], f[4])) == id then redis.call('DEL', prompt_key(f[2], f[4])) end
drop_saved(id, f[2])
unkeep(id, f[2], now())
redis.call('DEL', job_key(id), job_outputs_key(id), job_names_key(id), job_ui_key(id), job_extra_key(id), job_secret_key(id), job_preview_key(id))
rq_forget(id)
return 1
