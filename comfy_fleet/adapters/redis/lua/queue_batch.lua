-- Queue the next items of a batch, each with the step that takes it out of those to be queued; of one that is canceled, or whose
-- jobs had to start before now, end them.
-- args: batch, most, depth_limit.  ARGV: the error of those that come too late as JSON, RQ's text of it.
-- Returns {'schema', layout} | {how many are left, 1 if the queue has no room for them, else 0, facts for observers about each job that ended at once: {state, facts} ...}.
local other = other_schema()
if other then return other end
local batch, ended = args.batch, {}
local pending = batch_pending_key(batch)
local b = fields(batch_key(batch), 'owner', 'cancel', 'begun', 'retried')
if not b[1] then
  redis.call('ZREM', batches_busy_key, batch)
  return { 0, 0 }
end
local at, full = now(), 0
for _ = 1, args.most do
  local entry = redis.call('LINDEX', pending, 0)
  if not entry then break end
  local blobs, place = {}, 1
  while place <= #entry do
    blobs[#blobs + 1], place = struct.unpack('>Ic0', entry, place)
  end
  local job = cjson.decode(table.remove(blobs, 1))
  local late = false
  if job.deadline_s then  -- it began with the batch
    job.deadline_s = (tonumber(b[3] or '') or at) + job.deadline_s - at
    late = job.deadline_s <= 0
  end
  if not (late or b[2] or batch_room(b[1], args.depth_limit)) then
    full = 1
    break
  end
  local item = job.item
  local jobs = batch_jobs_key(batch)
  local ours = redis.call('HGET', jobs, item) == (job.was or job.id)
  if ours and redis.call('EXISTS', job_key(job.id)) == 0 then
    redis.call('HSET', jobs, item, job.id)
    local told = submit_job(job, blobs)
    if told[1] == 'shared' then
      local f = fields(job_key(job.id), 'status')
      if f[1] == 'succeeded' then ended[#ended + 1] = { f[1], ended_job(job.id, now()) } end
    end
    if told[1] == 'gone' then  -- nobody came for a day, and a file went meanwhile
      local why = { { item = tonumber(item), custom_id = redis.call('HGET', batch_names_key(batch), item), field = 'params',
        code = 'missing_asset', message = 'asset ' .. told[2] .. ' does not exist any more' } }
      redis.call('HSET', batch_refused_key(batch), item, cjson.encode(why))
      if job.was then redis.call('HSET', jobs, item, job.was) else redis.call('HDEL', jobs, item) end
      batch_put(batch, item, 'queued')
      batch_put(batch, item, 'refused')
    end
    batch_moves(job.id, fields(job_key(job.id), 'status')[1] or 'queued')
    if late and not b[2] then
      local f = fields(job_key(job.id), 'status', 'placement')
      if f[1] == 'queued' then ended[#ended + 1] = { 'expired', end_queued(job.id, f[2], 'expired', ARGV[2], ARGV[3], now()) } end
    elseif b[2] then
      local facts = cancel_job(job.id)
      if type(facts) == 'table' then ended[#ended + 1] = { 'canceled', facts } end
    end
  end
  redis.call('LTRIM', pending, 1, -1)
  batch_waits(b[1], -1)
end
local left = redis.call('LLEN', pending)
if left > 0 or b[2] then  -- the others have their turn
  redis.call('ZADD', batches_busy_key, 'XX', num(now()), batch)
else
  redis.call('ZREM', batches_busy_key, batch)
end
if left == 0 then
  redis.call('DEL', asset_hold_key(batch), asset_hold_key(b[4] or batch))  -- each job holds its files itself now
  batch_completes(batch, now())
end
return { left, full, unpack(ended) }
