-- The job was not written after all.  ARGV: job, then ids.
redis.call('DEL', 'fleet:asset:hold:' .. ARGV[1])
for i = 2, #ARGV do redis.call('SREM', 'fleet:asset:' .. ARGV[i] .. ':jobs', ARGV[1]) end
return 0
