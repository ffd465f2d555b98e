-- Jobs that may be merged into one prompt with others that have the same key (docs/adr/0048).

-- Only so many of a key are looked at in one call.
local MERGE_LOOKED = 16

-- A job that may be merged waits.  Returns whether one like it came a moment ago, so that it is worth a wait.
local function merge_add(key, id, rank, window_s)
  redis.call('ZADD', cleared(merge_waiting_key(key), 'zset'), rank, id)
  redis.call('EXPIRE', merge_waiting_key(key), 86400)  -- who waits for longer runs alone
  if window_s <= 0 then return false end
  local seen = redis.call('EXISTS', merge_seen_key(key)) == 1
  redis.call('SET', merge_seen_key(key), id, 'PX', math.ceil(window_s * 1000))
  return seen
end

-- For how many seconds a job still waits for others; nil if it does not.  f: its record's merge, merge_most and merge_until.
local function merge_gathers_s(f, at)
  local left = f.merge and (tonumber(f.merge_until or '') or 0) - at
  if not left or left <= 0 then return nil end
  if redis.call('ZCARD', cleared(merge_waiting_key(f.merge), 'zset')) >= (tonumber(f.merge_most) or 0) then return nil end
  return left
end

-- Take from those that wait the ones that run with a job, and the job itself.  most: of them;  set: KEY of the models it loads;
-- bounds: how many may run, as its record says: there is room for all that have the same.
local function merge_take(key, id, placement, set, bounds, most, at)
  local list, found = cleared(merge_waiting_key(key), 'zset'), {}
  redis.call('ZREM', list, id)
  for _, other in ipairs(most > 0 and redis.call('ZRANGE', list, 0, MERGE_LOOKED - 1) or {}) do
    if #found >= most then break end
    local f = fields(job_key(other), 'status', 'merge', 'placement', 'deadline', 'set', 'bounds')
    local waits = f[1] == 'queued' and f[2] == key
    if waits and f[3] == placement and f[5] == set and f[6] == bounds and (tonumber(f[4] or '') or math.huge) > at then found[#found + 1] = other end
    if not waits or found[#found] == other then redis.call('ZREM', list, other) end
  end
  return found
end

-- A job runs alone from now on: with others it did not get to its end.
local function merge_no_more(id)
  redis.call('HDEL', job_key(id), 'merge', 'merge_most', 'merge_until', 'merge_batch', 'batch')
end

-- A job runs in no batch, as others are to have its result.
local function merge_no_batch(id)
  local f = fields(job_key(id), 'merge', 'status')
  if f[2] == 'queued' and f[1] and string.sub(f[1], 1, 6) == 'batch:' then merge_no_more(id) end
end
