-- Try a job's outputs again that were given up.  args: id, owner (any if there is none).
-- Returns 'none' | 'waits' (for its store, already) | 'nothing' (its store has all of them, or gets none) | 'ok'.
local key, at = job_key(args.id), now()
local f = fields(key, 'owner', 'status', 'output', 'storing', 'removed', 'forgetting', 'unstored')
if not f[1] or (args.owner and f[1] ~= args.owner) or f[5] or f[6] then return 'none' end
if f[4] then return 'waits' end
if f[2] ~= 'succeeded' or not f[3] or not f[7] then return 'nothing' end
for _, field in ipairs(redis.call('HKEYS', key)) do
  if string.sub(field, 1, 7) == 'stored:' and decoded(redis.call('HGET', key, field)).state ~= 'stored' then redis.call('HDEL', key, field) end
end
local batch = batch_place(args.id)
if batch then redis.call('HINCRBY', batch_key(batch), 'unstored', -1) end
redis.call('HDEL', key, 'unstored')
local store = decoded(f[3]).store
redis.call('ZREM', transfers_failed_key(store), args.id)
redis.call('HDEL', transfer_store_key(store), 'until', 'since')  -- whoever asks knows that it answers again
transfer_begin(args.id, at)
return 'ok'
