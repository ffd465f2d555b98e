-- Files that jobs name by URL (docs/adr/0055).  A job that waits for one is in no queue: `follows`, which says so, is what earlier
-- versions know.

local function fetch_words(shown) return 'its input ' .. shown .. ' is being fetched' end

-- A new job, whose record is complete and says queued, waits for files.
local function begin_fetches(id, owner, wanted, at)
  local fetches = {}
  for _, one in ipairs(wanted) do
    fetches[one.id] = { shown = one.shown, inputs = one.inputs }
    redis.call('HSET', fetch_key(one.id), 'owner', owner, 'url', one.url)
    redis.call('SADD', fetch_jobs_key(one.id), id)
    redis.call('ZADD', fetch_due_key(owner), 'NX', num(at), one.id)
  end
  redis.call('ZADD', fetch_owners_key, 'NX', num(at), owner)
  redis.call('ZADD', fetching_key, num(at), id)
  redis.call('HSET', job_key(id), 'follows', 'inputs', 'fetches', cjson.encode(fetches), 'waits', fetch_words(wanted[1].shown))
end

-- The files that a job waits for, if it still does: FETCH -> {shown, inputs}.
local function awaited_files(id)
  local f = fields(job_key(id), 'status', 'fetches')
  if f[1] == 'queued' and f[2] then return decoded(f[2]) end
  redis.call('ZREM', fetching_key, id)  -- an earlier version has ended it
end

-- Whether a job still waits for this file; those that do not are forgotten.
local function fetch_wanted(fetch)
  for _ = 1, 20 do
    local some = redis.call('SRANDMEMBER', fetch_jobs_key(fetch), 25)
    if not some[1] then return false end
    for _, id in ipairs(some) do
      if (awaited_files(id) or {})[fetch] then return true end
      redis.call('SREM', fetch_jobs_key(fetch), id)
    end
  end
  return true
end

local function drop_fetch(fetch, owner)
  redis.call('DEL', fetch_key(fetch), fetch_jobs_key(fetch))
  redis.call('ZREM', fetch_due_key(owner), fetch)
  redis.call('ZREM', fetch_busy_key(owner), fetch)
  if redis.call('EXISTS', fetch_due_key(owner)) == 0 then redis.call('ZREM', fetch_owners_key, owner) end
end

-- Why an input does not take a file, or nil.
local function fetch_misfit(input, asset)
  if input.most_bytes and asset.size > input.most_bytes then return 'it takes at most ' .. string.format('%.0f', input.most_bytes) .. ' bytes, not ' .. string.format('%.0f', asset.size) end
  for _, pattern in ipairs(input.accept) do
    local kind = string.match(pattern, '^(.*/)%*$')
    if pattern == asset.type or (kind == '*/' and asset.type ~= 'text/html') or (kind and string.sub(asset.type, 1, #kind) == kind) then return nil end
  end
  return 'it takes ' .. table.concat(input.accept, ' or ') .. ', and this is ' .. asset.type
end

-- End a job that can't have a file.  err: {code, message, details}.
local function fail_fetch(id, input, err, text, at)
  local node, path = string.match(input.place, '^([^/]*)/(.*)$')
  local told = { code = err.code, message = 'node ' .. (node or '?') .. ', ' .. (path or '?') .. ': ' .. err.message, details = {} }
  for name, value in pairs(err.details) do told.details[name] = value end
  told.node_id, told.details.input = node, path
  end_job(id, 'failed', cjson.encode(told), text, at)
  return ended_job(id, at)
end

-- A job gets a file; if it waits for no other, it is in its queue from now on.
local function give_file(id, inputs, asset, rest, at)
  local key = job_key(id)
  local f = fields(key, 'uploads', 'assets', 'placement', 'rank')
  local uploads = decoded(f[1] or '{}')
  for _, input in ipairs(inputs) do uploads[input.place] = asset.id end
  local assets = f[2] or ''
  if not string.find(' ' .. assets .. ' ', ' ' .. asset.id .. ' ', 1, true) then assets = (assets == '' and '' or assets .. ' ') .. asset.id end
  redis.call('SADD', asset_jobs_key(asset.id), id)
  redis.call('HSET', key, 'uploads', cjson.encode(uploads), 'assets', assets)
  local _, other = next(rest)
  if other then
    redis.call('HSET', key, 'fetches', cjson.encode(rest), 'waits', fetch_words(other.shown))
    return
  end
  redis.call('HDEL', key, 'fetches', 'follows', 'waits')
  redis.call('ZREM', fetching_key, id)
  enqueue(id, f[4], at, {})
  wake_for(id, f[3])
  publish_status(id, 'queued')
end
