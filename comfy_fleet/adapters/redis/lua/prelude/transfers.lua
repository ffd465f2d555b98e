-- Outputs on their way into stores (docs/adr/0062).  All that a job has for its store is one transfer, which begins in the step that
-- ends the job.  What becomes of an output is in the job's record, as `stored:PLACE`.

local TRANSFERS_FAILED = 10000  -- jobs with outputs that were given up, of one store

-- When a store is looked at next: one that fails not before its pause is over.
local function transfer_plan(store)
  local first = redis.call('ZRANGE', transfer_queue_key(store), 0, 0, 'WITHSCORES')[2]
  redis.call('ZREM', transfers_key, store)
  if not first then return end
  local pause = fields(transfer_store_key(store), 'until')[1]
  redis.call('ZADD', transfers_key, num(math.max(tonumber(first), tonumber(pause or '') or 0)), store)
end

local function transfer_counts(store, bytes)
  for _, whose in ipairs({ store, '' }) do
    if redis.call('HINCRBY', transfer_bytes_key, whose, string.format('%.0f', bytes)) <= 0 then redis.call('HDEL', transfer_bytes_key, whose) end
  end
end

-- The places of a job's outputs that its store does not have and that were not given up, and their bytes.
local function transfer_open(id)
  local places, bytes, had = {}, 0, redis.call('HGETALL', cleared(job_outputs_key(id), 'hash'))
  for i = 1, #had, 2 do
    local output = decoded(had[i + 1])
    if output.asset_id and output.temporary ~= true and output.withheld ~= true and redis.call('HEXISTS', job_key(id), 'stored:' .. had[i]) == 0 then
      places[#places + 1] = had[i]
      bytes = bytes + (tonumber(output.size_bytes) or 0)
    end
  end
  return places, bytes
end

local function transfer_told(id, at)
  local f = fields(job_key(id), 'webhook', 'owner')
  local hook = f[1] and decoded(f[1])
  local round = redis.call('HINCRBY', job_key(id), 'stored_rounds', 1)
  if not hook or not hook.url or not hook.receiver or not string.find(' ' .. (hook.events or '') .. ' ', ' job.stored ', 1, true) then return end
  webhook_put('msg_' .. id .. '_stored' .. (round > 1 and '_' .. round or ''), { owner = f[2], type = 'job.stored', at = num(at), url = hook.url,
    receiver = hook.receiver, job = id, base = hook.base or '', after = 'msg_' .. id .. '_succeeded' })
end

-- A job has succeeded, or what failed is tried again.
local function transfer_begin(id, at)
  redis.call('ZREM', transfer_jobs_key, id)
  local f = fields(job_key(id), 'output', 'storing')
  local store = f[1] and decoded(f[1]).store
  if type(store) ~= 'string' or f[2] then return end
  local places, bytes = transfer_open(id)
  if #places == 0 then return transfer_told(id, at) end
  redis.call('HSET', job_key(id), 'storing', string.format('%.0f', bytes))
  -- Neither its record nor its files go before: versions that know of no transfers leave one alone whose end is that far away.
  redis.call('ZADD', expiring_key, 'XX', num(at + KEPT_S), id)
  redis.call('ZADD', transfer_queue_key(store), num(at), id)
  transfer_counts(store, bytes)
  local batch = batch_place(id)
  if batch then redis.call('HINCRBY', batch_key(batch), 'storing', 1) end
  transfer_plan(store)
  redis.call('PUBLISH', transfer_wake_key, store)
end

-- Nothing of a job waits any more; returns whether something did.  told: whether its client is told; else it is the job's end.
local function transfer_close(id, at, told)
  local key = job_key(id)
  local f = fields(key, 'output', 'storing', 'expires')
  local store = f[1] and decoded(f[1]).store
  if type(store) ~= 'string' or not f[2] then return false end
  redis.call('HDEL', key, 'storing', 'store_token', 'store_tries', 'store_error')
  redis.call('ZREM', transfer_queue_key(store), id)
  redis.call('ZREM', transfer_taken_key(store), id)
  transfer_counts(store, 0 - (tonumber(f[2]) or 0))
  transfer_plan(store)
  local failed = false
  for _, field in ipairs(redis.call('HKEYS', key)) do
    failed = failed or (string.sub(field, 1, 7) == 'stored:' and decoded(redis.call('HGET', key, field)).state == 'failed')
  end
  local batch = batch_place(id)
  if batch then redis.call('HINCRBY', batch_key(batch), 'storing', -1) end
  if not told then return true end
  redis.call('HSET', key, 'stored_at', num(at))
  redis.call('ZADD', expiring_key, 'XX', f[3] or num(at), id)
  if failed then
    redis.call('HSET', key, 'unstored', 1)
    local list = transfers_failed_key(store)
    redis.call('ZADD', list, num(at), id)
    redis.call('ZREMRANGEBYRANK', list, 0, -1 - TRANSFERS_FAILED)
    if batch then redis.call('HINCRBY', batch_key(batch), 'unstored', 1) end
  end
  transfer_told(id, at)
  if batch then batch_completes(batch, at) end
  return true
end

-- What waits of a job is given up.
local function transfer_give_up(id, why, at)
  for _, place in ipairs((transfer_open(id))) do
    redis.call('HSET', job_key(id), 'stored:' .. place, cjson.encode({ state = 'failed', error = why }))
  end
  transfer_close(id, at, true)
end

-- A job goes: what it has put into a store that is to forget it, too, is to be deleted there.
local function erasures_begin(id, at)
  local key = job_key(id)
  local f = fields(key, 'output')
  local store = f[1] and decoded(f[1]).store
  local record = type(store) == 'string' and redis.call('HGET', named_stores_key, store)
  if not record or decoded(record).on_delete ~= 'delete' then return end
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, 7) == 'stored:' then
      local note = decoded(redis.call('HGET', key, field))
      if note.state == 'stored' and type(note.key) == 'string' then
        redis.call('ZADD', erasures_key, num(at), table.concat({ store, id, note.key, num(at) }, '\n'))
        redis.call('HDEL', key, field)  -- a job that is removed is forgotten later, and this is done once
      end
    end
  end
end

-- A job goes: nothing of it is put into its store any more.
local function transfer_drop(id, at)
  transfer_close(id, at, false)
  erasures_begin(id, at)
  redis.call('ZREM', transfer_jobs_key, id)
  local f = fields(job_key(id), 'output', 'unstored')
  local store = f[1] and f[2] and decoded(f[1]).store
  if type(store) == 'string' then redis.call('ZREM', transfers_failed_key(store), id) end
end
