-- The node took the prompt.  args: run, token.  Returns 1, or 0 if the lease is gone.
if not owned(args.run, args.token) then return 0 end
despite_full()
redis.call('HSET', run_key(args.run), 'phase', 'accepted')
return 1
