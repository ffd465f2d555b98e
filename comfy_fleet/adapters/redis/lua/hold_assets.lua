-- Keep assets for a job that is about to be written.
-- ARGV: job, owner, then ids.  Returns 0, or the place (from 1) of the first id that is not the owner's.
for i = 3, #ARGV do
  if redis.call('HGET', 'fleet:asset:' .. ARGV[i], 'owner') ~= ARGV[2] then return i - 2 end
end
redis.call('SET', 'fleet:asset:hold:' .. ARGV[1], '1', 'EX', 60)
for i = 3, #ARGV do redis.call('SADD', 'fleet:asset:' .. ARGV[i] .. ':jobs', ARGV[1]) end
return 0
