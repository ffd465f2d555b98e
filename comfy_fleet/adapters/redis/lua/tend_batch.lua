-- Compare items of a batch that have not ended with their jobs, which a version without batches may have changed.
-- args: batch, from (how many to leave out), most.  Returns how many it has looked at.
local batch, at = args.batch, now()
if not fields(batch_key(batch), 'owner')[1] then
  redis.call('ZREM', batches_live_key, batch)
  return 0
end
local items = redis.call('ZRANGEBYSCORE', batch_items_key(batch), BATCH_STATES.queued * BATCH_STEP, '(' .. string.format('%.0f', BATCH_ENDS * BATCH_STEP), 'LIMIT', args.from, args.most)
for _, item in ipairs(items) do
  local id = redis.call('HGET', batch_jobs_key(batch), item)
  local status = id and fields(job_key(id), 'status')[1]
  if status and BATCH_STATES[status] then
    batch_put(batch, item, status)
  else  -- that version has forgotten it
    redis.call('ZREM', batch_items_key(batch), item)
    redis.call('HDEL', batch_jobs_key(batch), item)
  end
end
redis.call('ZADD', batches_live_key, 'XX', num(at), batch)
batch_completes(batch, at)
return #items
