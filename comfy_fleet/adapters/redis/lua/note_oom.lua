-- A profile ran out of memory on a card.  args: profile, size (bytes of the card), ttl_s.
-- Returns the largest that is known.
local key = oom_key(args.profile)
local size = math.max(tonumber(redis.call('GET', key) or '') or 0, args.size)
redis.call('SET', key, string.format('%d', size), 'EX', args.ttl_s)
return string.format('%d', size)
