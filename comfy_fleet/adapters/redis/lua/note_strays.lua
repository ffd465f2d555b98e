-- Blobs were found: note those without a record.  args: now, paths.  Returns {'schema', layout} | {'ok'}.
local other = other_schema()
if other then return other end
for _, path in ipairs(args.paths) do
  if redis.call('EXISTS', blob_refs_key(path)) == 0 and not redis.call('ZSCORE', blob_condemned_key, path) then
    redis.call('ZADD', blob_strays_key, 'NX', num(args.now), path)
  end
end
return { 'ok' }
