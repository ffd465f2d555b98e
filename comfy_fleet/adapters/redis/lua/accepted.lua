-- The node took the prompt.  ARGV: run, token.  Returns 1, or 0 if the lease is gone.
if not owned(ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', 'fleet:run:' .. ARGV[1], 'phase', 'accepted')
return 1
