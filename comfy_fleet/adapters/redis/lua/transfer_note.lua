-- Note what has become of outputs, and keep their transfer for a while.
-- args: id, store, token, lease_s, stored ({{place, state as JSON} ...}).  Returns 1, or 0 if somebody else has it by now.
local key, at = job_key(args.id), now()
local f = fields(key, 'store_token', 'storing')
if f[1] ~= args.token or not f[2] then return 0 end
despite_full()
for _, each in ipairs(args.stored) do redis.call('HSET', key, 'stored:' .. each[1], each[2]) end
redis.call('ZADD', transfer_taken_key(args.store), 'XX', num(at + args.lease_s), args.id)
redis.call('EXPIRE', transfer_taken_key(args.store), math.ceil(args.lease_s) + 1)
redis.call('ZADD', transfer_queue_key(args.store), 'XX', num(at + args.lease_s), args.id)
return 1
