-- Postpone the removal of a job that can't be forgotten yet.  args: job, seconds.
redis.call('ZADD', expiring_key, 'XX', num(now() + args.seconds), args.job)
