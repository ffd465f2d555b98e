-- Keep a URL for some more seconds.  args: fetch, token, lease_s.  Returns 1, or 0 if it is another process's now.
local f = fields(fetch_key(args.fetch), 'token', 'owner')
if f[1] ~= args.token then return 0 end
local till = num(now() + args.lease_s)
redis.call('ZADD', fetch_due_key(f[2]), till, args.fetch)
redis.call('ZADD', fetch_busy_key(f[2]), till, args.fetch)
return 1
