-- A profile ran out of memory on a card.  ARGV: profile, bytes of the card, ttl.  Returns the largest that is known.
local key = 'fleet:oom:' .. ARGV[1]
local size = math.max(tonumber(redis.call('GET', key) or '') or 0, tonumber(ARGV[2]))
redis.call('SET', key, string.format('%d', size), 'EX', ARGV[3])
return string.format('%d', size)
