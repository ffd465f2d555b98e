-- What metrics show of the queue and of webhooks.  It only reads.
-- args: most (waiting jobs, and receivers of webhooks, to look at).
-- Returns JSON: {at, counts ([PLACEMENT, COUNT, ...]), since ({PLACEMENT: when the oldest of its first jobs was submitted}),
--                messages, due (when the first is; -1: none), failing, stores ([STORE, BYTES, ...])}.
local function zset(command, key, ...)
  local found = redis.pcall(command, key, ...)
  return type(found) == 'table' and found.err and {} or found
end

local since = {}
local function saw(id)
  local f = fields(job_key(id), 'placement', 'created', 'status')
  local created = tonumber(f[2] or '')
  if f[1] and created and f[3] == 'queued' and created < (since[f[1]] or math.huge) then since[f[1]] = created end
end
for _, id in ipairs(zset('ZRANGE', queued_key, 0, args.most - 1)) do saw(id) end

-- Those with none among the first: by the first jobs of the owners that have had least there.
local counts = zset('HGETALL', sched_count_key)
for i = 1, math.min(#counts, 2 * 200), 2 do
  if not since[counts[i]] then
    for _, owner in ipairs(zset('ZRANGE', sched_owners_key(counts[i]), 0, 3)) do
      for _, id in ipairs(zset('ZRANGE', sched_jobs_key(counts[i], owner), 0, 0)) do saw(id) end
    end
  end
end

local messages, due, failing = 0, -1, 0
local function backlog(index)
  local found = zset('ZRANGE', index, 0, args.most - 1)
  for _, receiver in ipairs(found) do
    local count = zset('ZCARD', webhook_queue_key(receiver))
    if type(count) == 'number' then messages = messages + count end
  end
  return #found
end
backlog(webhook_receivers_key)
failing = backlog(webhook_failing_key)
local first = zset('ZRANGE', webhook_receivers_key, 0, 0, 'WITHSCORES')
if first[2] then due = tonumber(first[2]) end
if due == math.huge then due = -1 end
return cjson.encode({ at = now(), counts = counts, since = since, messages = messages, due = due, failing = failing,
  stores = zset('HGETALL', transfer_bytes_key) })
