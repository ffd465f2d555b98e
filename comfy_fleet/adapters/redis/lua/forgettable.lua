-- Jobs that are past their retention.  args: limit.  Returns their ids.
return redis.call('ZRANGEBYSCORE', expiring_key, '-inf', num(now()), 'LIMIT', 0, args.limit)
