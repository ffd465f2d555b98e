-- For how many items there is room, before they are queued and in the queue.

-- How many items wait to be queued if so many more have no room; a full backlog still takes an owner's up to this part of it.
local function batches_full(owner, more, most)
  local ALWAYS = 10
  local waiting, own = to_be_queued(''), to_be_queued(owner)
  if waiting + more > most and (own + more > math.floor(most / ALWAYS) or waiting + more > 2 * most) then return waiting end
end

-- Whether the queue takes an item of a batch.  Batches fill half of it: so there is room for single jobs.  An owner may have a part
-- of the queue in any case, so that nobody keeps all others out.
local function batch_room(owner, depth_limit)
  local ALWAYS = 10
  local depth = sched_call('ZCARD', queued_key) + redis.call('ZCARD', fetching_key)
  if depth < math.max(1, math.floor(depth_limit / 2)) then return true end
  return depth < 2 * depth_limit and redis.call('ZCARD', listed_key(owner, 'pending')) < math.max(1, math.floor(depth_limit / ALWAYS))
end
