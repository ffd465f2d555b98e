-- Take a job that is over, or is being canceled, from its owner: nothing finds it any more, and what is left of it goes as
-- if its retention had ended.  args: job, owner.
-- Returns {'schema', layout} | {'none'} | {'live', its state: cancel it first} | {'gone'}.
local other = other_schema()
if other then return other end
local id, key = args.job, job_key(args.job)
local f = fields(key, 'owner', 'status', 'prompt_hash', 'removed')
if f[1] ~= args.owner then return { 'none' } end
if f[2] == 'queued' or f[2] == 'running' then return { 'live', f[2] } end
if f[4] then return { 'gone' } end
local at = now()
unkeep(id, args.owner, at)
transfer_drop(id, at)
redis.call('HSET', key, 'removed', 1, 'hidden', 1, 'expires_in', 0, 'expires', num(at))
redis.call('ZREM', jobs_key, id)
redis.call('ZREM', jobs_of_key(args.owner), id)
unlist_job(id, args.owner)
if f[3] and redis.call('GET', prompt_key(args.owner, f[3])) == id then redis.call('DEL', prompt_key(args.owner, f[3])) end
drop_saved(id, args.owner)
batch_forgets(id, at)
if f[2] ~= 'canceling' then redis.call('ZADD', expiring_key, num(at), id) end
return { 'gone' }
