-- Postpone the removal of a job of forgettable.lua that can't be forgotten yet.  args: job, seconds.
local f = fields(job_key(args.job), 'owner', 'removed', 'forgetting')
if f[1] and not f[2] and not f[3] then return end
redis.call('ZADD', expiring_key, 'XX', num(now() + args.seconds), args.job)
