-- Records over bytes.

-- An asset's record, or nil.
local function asset_of(id)
  local had, found = redis.call('HGETALL', asset_key(id)), {}
  for i = 1, #had, 2 do found[had[i]] = had[i + 1] end
  return next(found) and found or nil
end

-- Write an asset's record; 1 if the bytes are new to its owner.
local function add_asset(r)
  if redis.call('EXISTS', asset_key(r.id)) == 0 then
    r.counted = '1'
    redis.call('HINCRBY', stored_bytes_key, r.owner, r.size_bytes)
  end
  redis.call('HSET', asset_key(r.id), unpack(flat(r)))
  redis.call('SADD', blob_refs_key(r.path), r.id)
  redis.call('ZREM', blob_unused_key, r.hash .. ' ' .. r.path)
  redis.call('ZREM', blob_strays_key, r.path)
  local mine = blob_owner_key(r.owner, r.hash)
  redis.call('SADD', mine, r.id)
  if r.job_id then
    redis.call('HSET', asset_outputs_key(r.job_id), r.hash .. '\0' .. r.file_path, r.id)
  else
    local name = r.listed or r.file_path
    if not r.folder then redis.call('HSET', blob_same_key(r.owner, r.hash), r.file_path, r.id) end
    redis.call('ZADD', asset_names_key(r.owner, name), r.created_at, r.id)
    redis.call('ZADD', asset_uploads_key(r.owner, r.folder or 'input'), num(now()), name)  -- as jobs' files are listed
    if r.expires_at then redis.call('ZADD', asset_expiry_key, r.expires_at, r.id) end
  end
  return redis.call('SCARD', mine) == 1 and 1 or 0
end

-- Asking for the bytes of an upload again makes them stay longer, never shorter. Outputs go with their job.
local function stay(old, r)
  if not old.expires_at or old.job_id then return end
  local key = asset_key(old.id)
  if r.renews then redis.call('HSET', key, 'renews', '1') end
  if old.kept_from then  -- a kept job uses it: its own end is another one
    if not r.expires_at then
      redis.call('HDEL', key, 'kept_from')
    elseif tonumber(r.expires_at) > (tonumber(old.kept_from) or 0) then
      redis.call('HSET', key, 'kept_from', r.expires_at)
    end
    if r.expires_at then return end
  end
  if r.expires_at and tonumber(r.expires_at) <= tonumber(old.expires_at) then return end
  if r.expires_at then
    redis.call('HSET', key, 'expires_at', r.expires_at)
    redis.call('ZADD', asset_expiry_key, r.expires_at, old.id)
  else
    redis.call('HDEL', key, 'expires_at')
    redis.call('ZREM', asset_expiry_key, old.id)
  end
end
