-- Forget an asset's record; bytes that have no other record wait for the sweep from now on.
-- ARGV: id, owner or '' for any, now.  Returns {'schema', layout} | {'none'} | {'held'} | {'gone'}.
local other = other_schema()
if other then return other end
local id, owner = ARGV[1], ARGV[2]
local LIVE = { queued = true, running = true, canceling = true }

local function live(job)
  local status = redis.pcall('HGET', jobkey(job), 'status')
  return type(status) == 'string' and LIVE[status]
end

local function needed()
  local key = 'fleet:asset:' .. id .. ':jobs'
  for _, job in ipairs(redis.call('SMEMBERS', key)) do
    if live(job) then return true end
    if redis.call('EXISTS', jobkey(job)) == 0 and redis.call('EXISTS', 'fleet:asset:hold:' .. job) == 1 then
      return true
    end
    redis.call('SREM', key, job)  -- left behind by a process that died before it wrote the job
  end
  return false
end

local r = asset_of(id)
if not r or (owner ~= '' and r.owner ~= owner) then return { 'none' } end
if needed() or (owner ~= '' and r.job_id and live(r.job_id)) then return { 'held' } end
redis.call('DEL', 'fleet:asset:' .. id)
redis.call('SREM', 'fleet:blob:owner:' .. r.owner .. ':' .. r.hash, id)
if r.job_id then
  redis.call('HDEL', 'fleet:asset:job:' .. r.job_id, r.hash .. '\0' .. r.file_path)
else
  local same = 'fleet:blob:same:' .. r.owner .. ':' .. r.hash
  if redis.call('HGET', same, r.file_path) == id then redis.call('HDEL', same, r.file_path) end
  redis.call('ZREM', 'fleet:asset:names:' .. r.owner .. ':' .. (r.listed or r.file_path), id)
  redis.call('ZREM', 'fleet:asset:expiry', id)
end
redis.call('SREM', 'fleet:blob:refs:' .. r.path, id)
if redis.call('EXISTS', 'fleet:blob:refs:' .. r.path) == 0 then
  redis.call('ZADD', 'fleet:blob:unused', ARGV[3], r.hash .. ' ' .. r.path)
end
return { 'gone' }
