-- Compare items of a batch that have not ended (`ended`: those that have) with their jobs, which a version without batches may have
-- changed or forgotten.  args: batch, from (how many to leave out), most, ended (bool).  Returns how many are there that it has looked at.
local batch, at = args.batch, now()
if not fields(batch_key(batch), 'owner')[1] then
  redis.call('ZREM', batches_live_key, batch)
  return 0
end
local ends, refused = string.format('%.0f', BATCH_ENDS * BATCH_STEP), string.format('%.0f', BATCH_STATES.refused * BATCH_STEP)
local low, high = BATCH_STATES.queued * BATCH_STEP, '(' .. ends
if args.ended then low, high = ends, '(' .. refused end
local items, lost = redis.call('ZRANGEBYSCORE', batch_items_key(batch), low, high, 'LIMIT', args.from, args.most), 0
for _, item in ipairs(items) do
  local id = redis.call('HGET', batch_jobs_key(batch), item)
  local status = id and fields(job_key(id), 'status')[1]
  if status and BATCH_STATES[status] then
    if not args.ended then batch_put(batch, item, status) end
  elseif redis.call('EXISTS', batch_key(batch)) == 1 then
    lost = lost + 1
    batch_loses(batch, item, at)
  end
end
local f = fields(batch_key(batch), 'owner', 'completed')
if f[2] and redis.call('HLEN', batch_jobs_key(batch)) == 0 and tonumber(f[2]) < at - 86400 then batch_drop(batch, f[1]) end  -- no job will ever go
redis.call('ZADD', batches_live_key, 'XX', num(at), batch)
batch_completes(batch, at)
return #items - lost
