-- Remove an asset's record; bytes without another record wait for the sweep from now on.
-- args: id, owner (any if there is none), now, ended (bool: only an upload whose time is over).  Returns {'schema', layout} | {'none'} | {'held'} | {'gone'}.
local other = other_schema()
if other then return other end
local id, owner = args.id, args.owner
local LIVE = { queued = true, running = true, canceling = true }

local function live(job)
  local status = redis.pcall('HGET', job_key(job), 'status')
  return type(status) == 'string' and LIVE[status]
end

local function needed()
  for _, job in ipairs(redis.call('SMEMBERS', asset_jobs_key(id))) do
    if live(job) then return true end
    if redis.call('EXISTS', job_key(job)) == 0 and redis.call('EXISTS', asset_hold_key(job)) == 1 then
      return true
    end
    redis.call('SREM', asset_jobs_key(id), job)  -- left behind by a process that died before it wrote the job
  end
  return false
end

local r = asset_of(id)
if not r or (owner and r.owner ~= owner) then return { 'none' } end
-- A job's output goes with the job, whose end was decided before; what was listed as ended may have been given more time since.
if not owner and r.job_id then
  local f = fields(job_key(r.job_id), 'owner', 'removed', 'forgetting')
  if f[1] and not f[2] and not f[3] then return { 'held' } end
end
if args.ended and (tonumber(redis.call('ZSCORE', asset_expiry_key, id) or '') or math.huge) > args.now then return { 'held' } end
if needed() or (owner and r.job_id and live(r.job_id)) or (not owner and is_kept(id)) then return { 'held' } end
redis.call('DEL', asset_key(id), asset_kept_key(id))
if r.counted and redis.call('HINCRBY', stored_bytes_key, r.owner, string.format('%.0f', 0 - r.size_bytes)) <= 0 then
  redis.call('HDEL', stored_bytes_key, r.owner)
end
redis.call('SREM', blob_owner_key(r.owner, r.hash), id)
if r.job_id then
  redis.call('HDEL', asset_outputs_key(r.job_id), r.hash .. '\0' .. r.file_path)
  for _, folder in ipairs({ 'output', 'temp' }) do
    local path = folder .. '/' .. r.file_path
    if redis.pcall('HGET', saved_files_key(r.owner), path) == id then unlist_saved(r.owner, path) end
  end
else
  local same = blob_same_key(r.owner, r.hash)
  if redis.call('HGET', same, r.file_path) == id then redis.call('HDEL', same, r.file_path) end
  local name = r.listed or r.file_path
  local names = asset_names_key(r.owner, name)
  redis.call('ZREM', names, id)
  if redis.call('EXISTS', names) == 0 then redis.call('ZREM', asset_uploads_key(r.owner, r.folder or 'input'), name) end
  redis.call('ZREM', asset_expiry_key, id)
end
redis.call('SREM', blob_refs_key(r.path), id)
if redis.call('EXISTS', blob_refs_key(r.path)) == 0 then
  redis.call('ZADD', blob_unused_key, num(args.now), r.hash .. ' ' .. r.path)
end
return { 'gone' }
