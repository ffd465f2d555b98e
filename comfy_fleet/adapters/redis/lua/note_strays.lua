-- Blobs were found: note those that no record knows.  ARGV: now, then paths.
local other = other_schema()
if other then return other end
for i = 2, #ARGV do
  if redis.call('EXISTS', 'fleet:blob:refs:' .. ARGV[i]) == 0 and not redis.call('ZSCORE', 'fleet:blob:condemned', ARGV[i]) then
    redis.call('ZADD', 'fleet:blob:strays', 'NX', ARGV[1], ARGV[i])
  end
end
return { 'ok' }
