-- The prompt has left the node: the node is free, only outputs are still to be fetched.
-- ARGV: run, token, manifest as JSON, what its nodes handed over as JSON or ''.  Returns 1, or 0 if the lease is gone.
local run = ARGV[1]
if not owned(run, ARGV[2]) then return 0 end
redis.call('HSET', 'fleet:run:' .. run, 'phase', 'left', 'manifest', ARGV[3])
local r = redis.call('HMGET', 'fleet:run:' .. run, 'node', 'job')
local node = r[1]
keep_ui(r[2], ARGV[4])
if redis.call('GET', 'fleet:lease:' .. node) == run then redis.call('DEL', 'fleet:lease:' .. node) end
return 1
