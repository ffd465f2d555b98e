-- The end of a batch: the script that ends its last item writes what is told of it, too.

local function batch_completes(batch, at)
  local key = batch_key(batch)
  local f = fields(key, 'owner', 'webhook', 'completed', 'rounds', 'workflow', 'storing', 'unstored')
  if not f[1] or f[3] or (tonumber(f[6] or '') or 0) > 0 or redis.call('EXISTS', batch_pending_key(batch)) == 1 or batch_left(batch) > 0 then return end
  redis.call('HSET', key, 'completed', num(at))
  redis.call('ZREM', batches_live_key, batch)
  batch_tell(batch, { status = 'completed' })
  local hook = f[2] and decoded(f[2])
  if not hook or not hook.url or not hook.receiver then return end
  local counts, ended = {}, {}
  for _, state in ipairs({ 'succeeded', 'failed', 'canceled', 'expired', 'refused' }) do
    counts[state] = batch_count(batch, state)
    ended[state] = tonumber(fields(key, 'round_' .. state)[1] or '') or 0
  end
  local data = { id = batch, status = 'completed', workflow = f[5] or cjson.null, counts = counts,
    round = tonumber(f[4] or '') or 1, round_counts = ended, not_stored = tonumber(f[7] or '') or 0,
    url = (hook.base or '') .. '/api/v1/batches/' .. batch }
  webhook_put('msg_' .. batch .. '_completed_' .. (f[4] or '1'), { owner = f[1], type = 'batch.completed', at = num(at), url = hook.url,
    receiver = hook.receiver, data = cjson.encode(data) })
end

-- A job that is in no batch, or has ended there, changes nothing.
local function batch_ended(id, at)
  local batch = batch_place(id)
  if batch then batch_completes(batch, at) end
end

local function batch_drop(batch, owner)
  redis.call('DEL', batch_key(batch), batch_items_key(batch), batch_jobs_key(batch), batch_names_key(batch), batch_refused_key(batch), batch_pending_key(batch))
  redis.call('ZREM', batches_key, batch)
  redis.call('ZREM', batches_live_key, batch)
  redis.call('ZREM', batches_busy_key, batch)
  redis.call('ZREM', batches_of_key(owner), batch)
end

-- An item's job is there no more.  The batch goes with the last of its jobs.
local function batch_loses(batch, item, at)
  redis.call('ZREM', batch_items_key(batch), item)
  redis.call('HDEL', batch_jobs_key(batch), item)
  redis.call('HDEL', batch_names_key(batch), item)
  if redis.call('HLEN', batch_jobs_key(batch)) == 0 then
    batch_drop(batch, fields(batch_key(batch), 'owner')[1] or '')
  else
    batch_completes(batch, at)
  end
end

-- A job's owner finds it no more: neither does its batch.
local function batch_forgets(id, at)
  local batch, item = batch_place(id)
  if batch then batch_loses(batch, item, at) end
end
