-- Remove every trace of a job of forgettable.lua; of no other one.  args: job.  Returns 1 if it was there.
local id = args.job
local f = fields(job_key(id), 'status', 'owner', 'graph', 'prompt_hash', 'removed', 'forgetting', 'rq')
if f[1] and not f[5] and not f[6] then return 0 end
redis.call('ZREM', expiring_key, id)
if not f[1] then
  redis.call('ZREM', jobs_key, id)
  return 0
end
local owner = f[2] or ''
if f[3] and redis.call('HINCRBY', graphs_key, f[3], -1) <= 0 then
  redis.call('HDEL', graphs_key, f[3])
  redis.call('DEL', graph_key(f[3]))
end
redis.call('ZREM', jobs_key, id)
redis.call('ZREM', jobs_of_key(owner), id)
redis.call('ZREM', live_key(owner), id)
unlist_job(id, owner)
if f[4] and redis.call('GET', prompt_key(owner, f[4])) == id then redis.call('DEL', prompt_key(owner, f[4])) end
drop_saved(id, owner)
unkeep(id, owner, now())
transfer_drop(id, now())
batch_forgets(id, now())
redis.call('DEL', job_key(id), job_outputs_key(id), job_names_key(id), job_ui_key(id), job_extra_key(id), job_secret_key(id), job_preview_key(id))
if not f[7] then rq_forget(id) end
return 1
