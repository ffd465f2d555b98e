-- Cancel a batch: those of its items that have not ended, and from now on those that wait to be queued.
-- args: batch, most (items of one call), marked (bool: only if it was canceled before).
-- Returns {how many are left to be canceled, those to be queued among them, facts for observers about each job that ended here ...}.
local batch, ended, seen = args.batch, {}, 0
local f = fields(batch_key(batch), 'completed', 'cancel', 'owner')
if args.marked and not f[2] then return { 0 } end
if not f[3] or f[1] then
  redis.call('ZREM', batches_busy_key, batch)
  return { 0 }
end
redis.call('HSET', batch_key(batch), 'cancel', 1)
redis.call('ZADD', batches_busy_key, 'NX', num(now()), batch)
local last = string.format('%.0f', BATCH_STATES.canceling * BATCH_STEP)
local items = redis.call('ZREVRANGEBYSCORE', batch_items_key(batch), '(' .. last, BATCH_STATES.queued * BATCH_STEP, 'LIMIT', 0, args.most)
for _, item in ipairs(items) do
  local id = redis.call('HGET', batch_jobs_key(batch), item)
  local facts = id and cancel_job(id) or ''
  if type(facts) == 'table' then ended[#ended + 1] = facts end
  local status = id and fields(job_key(id), 'status')[1]
  if status then batch_put(batch, item, status) else batch_loses(batch, item, now()) end  -- a version without batches has forgotten it
end
batch_completes(batch, now())
local left = redis.call('ZCOUNT', batch_items_key(batch), BATCH_STATES.queued * BATCH_STEP, '(' .. last) + redis.call('LLEN', batch_pending_key(batch))
if left == 0 then redis.call('ZREM', batches_busy_key, batch) end
return { left, unpack(ended) }
