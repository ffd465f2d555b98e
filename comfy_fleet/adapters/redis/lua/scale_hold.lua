-- Who scales the fleet, and what is remembered of a pool.  args: holder; ttl_ms (to become active, or stay so), or
-- pool with its book as ARGV[2] and its looks as ARGV[3], or release (bool).
-- Returns 1, or 0 where another one is active.
local active = redis.call('GET', autoscaler_key)
if args.ttl_ms then
  if active and active ~= args.holder then return 0 end
  redis.call('SET', autoscaler_key, args.holder, 'PX', args.ttl_ms)
  return 1
end
if active ~= args.holder then return 0 end
if args.release then
  redis.call('DEL', autoscaler_key)
else
  redis.call('HSET', autoscale_books_key, args.pool, ARGV[2])
  redis.call('HSET', autoscale_looks_key, args.pool, ARGV[3])
end
return 1
