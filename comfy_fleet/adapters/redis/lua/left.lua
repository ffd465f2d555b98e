-- The prompt has left the node: the node is free, only outputs are still to be fetched.
-- args: run, token.  ARGV: manifest as JSON, what its nodes handed over as JSON or ''.  Returns 1, or 0 if the lease is gone.
local run = args.run
if not owned(run, args.token) then return 0 end
despite_full()
redis.call('HSET', run_key(run), 'phase', 'left', 'manifest', ARGV[2], 'freed', num(now()))
local r = redis.call('HMGET', run_key(run), 'node', 'job')
local node = r[1]
keep_ui(r[2], ARGV[3])
if redis.call('GET', lease_key(node)) == run then redis.call('DEL', lease_key(node)) end
sched_left(run, now())
return 1
