-- Jobs that are kept beyond their retention, and what they use.

-- A hundred years: also versions that know of no kept jobs leave one alone whose end is that far away.
local KEPT_S = 3153600000

-- An asset stays as long as a kept job uses it.  Its own end is remembered.
local function keep_asset(asset, id, at)
  local key = asset_key(asset)
  if redis.call('EXISTS', key) == 0 then return end
  redis.call('SADD', asset_kept_key(asset), id)
  local ends = redis.call('HGET', key, 'expires_at')
  if not ends or redis.call('HEXISTS', key, 'kept_from') == 1 then return end
  redis.call('HSET', key, 'kept_from', ends, 'expires_at', num(at + KEPT_S))
  if redis.call('ZSCORE', asset_expiry_key, asset) then redis.call('ZADD', asset_expiry_key, num(at + KEPT_S), asset) end
end

-- A job no longer keeps an asset, which stays until its own end, and until this time at least.
local function unkeep_asset(asset, id, least)
  local key = asset_key(asset)
  redis.call('SREM', asset_kept_key(asset), id)
  if redis.call('EXISTS', asset_kept_key(asset)) == 1 then return end
  local f = redis.call('HMGET', key, 'kept_from', 'expires_at')
  if not f[1] then return end
  redis.call('HDEL', key, 'kept_from')
  if not f[2] then return end
  local ends = num(math.max(tonumber(f[1]) or 0, least))
  redis.call('HSET', key, 'expires_at', ends)
  if redis.call('ZSCORE', asset_expiry_key, asset) then redis.call('ZADD', asset_expiry_key, ends, asset) end
end

-- A job is no longer kept; its own end is the caller's business.
local function unkeep(id, owner, least)
  local f = fields(job_key(id), 'kept', 'assets')
  if not f[1] then return end
  redis.call('HDEL', job_key(id), 'kept')
  redis.call('SREM', kept_key(owner), id)
  for asset in string.gmatch(f[2] or '', '%S+') do unkeep_asset(asset, id, least) end
end

-- Whether a kept job uses an asset.
local function is_kept(asset)
  for _, job in ipairs(redis.call('SMEMBERS', asset_kept_key(asset))) do
    if fields(job_key(job), 'kept')[1] then return true end
    redis.call('SREM', asset_kept_key(asset), job)  -- an earlier version has forgotten it
  end
  return false
end
