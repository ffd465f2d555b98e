-- Replaces a pool's settings, unless somebody else has changed them since they were read.
-- args: name; ARGV[2], ARGV[3]: its record as it was read and as it is to be, '' for none.  Returns 1, or 0 if changed.
if (redis.call('HGET', pools_key, args.name) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', pools_key, args.name)
else
  redis.call('HSET', pools_key, args.name, ARGV[3])
end
return 1
