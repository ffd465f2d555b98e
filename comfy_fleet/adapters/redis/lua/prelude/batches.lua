-- Batches (docs/adr/0060).  An item's score in its batch is its state times BATCH_STEP, plus its number: so a range of scores is a
-- state, in the items' order.

local BATCH_STEP = 10000000

local BATCH_STATES = { pending = 0, queued = 1, running = 2, canceling = 3, succeeded = 4, failed = 5, canceled = 6, expired = 7, refused = 8 }

local BATCH_ENDS = 4  -- the first state that is an end

-- The batch and the item whose job this is; nil if it is in none, or another job has taken its place there.
local function batch_place(id)
  local batch, item = string.match(fields(job_key(id), 'in_batch')[1] or '', '^(%S+) (%d+)')
  if batch and redis.call('HGET', batch_jobs_key(batch), item) == id then return batch, item end
end

-- The record counts what has ended in this round: round_STATE.
local function batch_put(batch, item, state)
  local was = tonumber(redis.call('ZSCORE', batch_items_key(batch), item) or '')
  if not was then return end
  redis.call('ZADD', batch_items_key(batch), 'XX', BATCH_STATES[state] * BATCH_STEP + item, item)
  if was < BATCH_ENDS * BATCH_STEP and BATCH_STATES[state] >= BATCH_ENDS then redis.call('HINCRBY', batch_key(batch), 'round_' .. state, 1) end
end

local function batch_tell(batch, told) redis.call('PUBLISH', batch_events_key(batch), cjson.encode(told)) end

-- A job has got another state.
local function batch_moves(id, status)
  local batch, item = batch_place(id)
  if not batch then return end
  batch_put(batch, item, status)
  batch_tell(batch, { item = tonumber(item), job = id, status = status })
end

-- How many items have a state.
local function batch_count(batch, state)
  local first = BATCH_STATES[state] * BATCH_STEP
  return redis.call('ZCOUNT', batch_items_key(batch), first, '(' .. string.format('%.0f', first + BATCH_STEP))
end

-- How many items have not ended, those that are not queued yet among them.
local function batch_left(batch)
  return redis.call('ZCOUNT', batch_items_key(batch), '-inf', '(' .. string.format('%.0f', BATCH_ENDS * BATCH_STEP))
end

-- So many items of an owner's are to be queued, or fewer are from now on; '' is everybody.
local function batch_waits(owner, more)
  for _, whose in ipairs({ owner, '' }) do
    if redis.call('HINCRBY', batches_waiting_key, whose, more) <= 0 then redis.call('HDEL', batches_waiting_key, whose) end
  end
end
