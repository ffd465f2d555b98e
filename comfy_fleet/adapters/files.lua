-- Asset records. One script, the operation is ARGV[1]; every call is atomic.
--
-- fleet:asset:ID            hash: the record (fields as in domain/jobs/asset.py; absent fields are unset)
-- fleet:asset:ID:jobs       set: live jobs that need the asset (submit adds, the job's end removes)
-- fleet:asset:hold:JOB      string, 60 s: this job is about to be written
-- fleet:asset:job:JOB       hash: HASH NUL NAME -> asset id of the job's outputs
-- fleet:asset:names:OWNER:NAME   zset: ids of uploads with this name in any spelling, by time
-- fleet:asset:expiry        zset: ids of uploads that end, by when
-- fleet:blob:owner:OWNER:HASH    set: ids of the owner's records over these bytes
-- fleet:blob:same:OWNER:HASH     hash: NAME -> newest upload with these bytes and this name
-- fleet:blob:refs:PATH      set: ids of records (and pins) over one file
-- fleet:blob:pins           zset: PATH NUL PIN, by time: files about to get a record
-- fleet:blob:gone:PATH      string: this file is being unlinked right now
-- fleet:blob:doomed         zset: PATH, by the server's time: nothing needs it, and it may not be unlinked yet

local op = ARGV[1]

local function record(id)
  local flat = redis.call('HGETALL', 'fleet:asset:' .. id)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return next(found) and found or nil
end

local function add(r)
  local flat = {}
  for key, value in pairs(r) do flat[#flat + 1] = key; flat[#flat + 1] = value end
  redis.call('HSET', 'fleet:asset:' .. r.id, unpack(flat))
  redis.call('SADD', 'fleet:blob:refs:' .. r.path, r.id)
  local fresh = redis.call('EXISTS', 'fleet:blob:owner:' .. r.owner .. ':' .. r.hash) == 0
  redis.call('SADD', 'fleet:blob:owner:' .. r.owner .. ':' .. r.hash, r.id)
  if r.job_id then
    redis.call('HSET', 'fleet:asset:job:' .. r.job_id, r.hash .. '\0' .. r.file_path, r.id)
  else
    redis.call('HSET', 'fleet:blob:same:' .. r.owner .. ':' .. r.hash, r.file_path, r.id)
    redis.call('ZADD', 'fleet:asset:names:' .. r.owner .. ':' .. (r.listed or r.file_path), r.created_at, r.id)
    if r.expires_at then redis.call('ZADD', 'fleet:asset:expiry', r.expires_at, r.id) end
  end
  return fresh and 1 or 0
end

-- add RECORD(JSON) [PIN]: 1 if the bytes are new to the owner; for outputs {0, id} if it exists already
if op == 'add' then
  local r = cjson.decode(ARGV[2])
  if r.job_id then
    local there = redis.call('HGET', 'fleet:asset:job:' .. r.job_id, r.hash .. '\0' .. r.file_path)
    if there then return {0, there} end
  end
  local fresh = add(r)
  if ARGV[3] then
    redis.call('SREM', 'fleet:blob:refs:' .. r.path, ARGV[3])
    redis.call('ZREM', 'fleet:blob:pins', r.path .. '\0' .. ARGV[3])
  end
  return {fresh, r.id}
end

-- pin PATH PIN NOW: 0 while the file is being unlinked
if op == 'pin' then
  if redis.call('EXISTS', 'fleet:blob:gone:' .. ARGV[2]) == 1 then return 0 end
  redis.call('SADD', 'fleet:blob:refs:' .. ARGV[2], ARGV[3])
  redis.call('ZADD', 'fleet:blob:pins', ARGV[4], ARGV[2] .. '\0' .. ARGV[3])
  return 1
end

local function unref(path, id)
  redis.call('SREM', 'fleet:blob:refs:' .. path, id)
  if redis.call('SCARD', 'fleet:blob:refs:' .. path) > 0 then return 0 end
  redis.call('SET', 'fleet:blob:gone:' .. path, '1', 'EX', 30)
  redis.call('ZADD', 'fleet:blob:doomed', redis.call('TIME')[1], path)
  return 1
end

-- unpin PATH PIN: 1 if nothing needs the file any more (the caller unlinks it, then calls `unlinked`)
if op == 'unpin' then
  redis.call('ZREM', 'fleet:blob:pins', ARGV[2] .. '\0' .. ARGV[3])
  return unref(ARGV[2], ARGV[3])
end

if op == 'unlinked' then
  redis.call('ZREM', 'fleet:blob:doomed', ARGV[2])
  return redis.call('DEL', 'fleet:blob:gone:' .. ARGV[2])
end

-- unlinking PATH: it takes its time; nobody may put the file anew meanwhile
if op == 'unlinking' then return redis.call('EXPIRE', 'fleet:blob:gone:' .. ARGV[2], 30) end

-- doomed AGE LIMIT: files that nothing needs, and that a process which died has left; they are marked as gone
if op == 'doomed' then
  local before, found = tonumber(redis.call('TIME')[1]) - tonumber(ARGV[2]), {}
  for _, path in ipairs(redis.call('ZRANGEBYSCORE', 'fleet:blob:doomed', '-inf', before, 'LIMIT', 0, ARGV[3])) do
    if redis.call('SCARD', 'fleet:blob:refs:' .. path) > 0 then
      redis.call('ZREM', 'fleet:blob:doomed', path)  -- it was put anew
    elseif redis.call('SET', 'fleet:blob:gone:' .. path, '1', 'NX', 'EX', 30) then
      found[#found + 1] = path
    end
  end
  return found
end

-- copy OWNER HASH NAME('' = any) RECORD(JSON without path, size_bytes, content_type) FULL('' or 'full'):
--   a record over known bytes; on a full disk only one that is there already
--   {'same', id} | {'new', id} | {'link', id of an output to take the bytes from} | {'none'} | {'full'}
if op == 'copy' then
  local owner, hash, name = ARGV[2], ARGV[3], ARGV[4]
  local r = cjson.decode(ARGV[5])
  local same = 'fleet:blob:same:' .. owner .. ':' .. hash
  local there
  if name ~= '' then
    there = redis.call('HGET', same, name)
  else
    there = redis.call('HRANDFIELD', same)
    if there then there = redis.call('HGET', same, there) end
  end
  if there then
    local old = record(there)
    if old and old.tags == (r.tags or old.tags) then
      -- asking for the bytes again makes them stay longer, never shorter
      if old.expires_at and r.renews then redis.call('HSET', 'fleet:asset:' .. there, 'renews', '1') end
      if old.expires_at and (not r.expires_at or tonumber(r.expires_at) > tonumber(old.expires_at)) then
        if r.expires_at then
          redis.call('HSET', 'fleet:asset:' .. there, 'expires_at', r.expires_at)
          redis.call('ZADD', 'fleet:asset:expiry', r.expires_at, there)
        else
          redis.call('HDEL', 'fleet:asset:' .. there, 'expires_at')
          redis.call('ZREM', 'fleet:asset:expiry', there)
        end
      end
      return {'same', there}
    end
  end
  local source = redis.call('HRANDFIELD', same)
  if source then
    source = redis.call('HGET', same, source)
  else
    source = redis.call('SRANDMEMBER', 'fleet:blob:owner:' .. owner .. ':' .. hash)
  end
  local from = source and record(source)
  if not from then return {'none'} end
  if ARGV[6] == 'full' then return {'full'} end
  if from.job_id then return {'link', source} end
  r.owner, r.hash, r.path = owner, hash, from.path
  r.size_bytes, r.content_type = from.size_bytes, from.content_type
  r.file_path = name ~= '' and name or from.file_path
  r.tags = r.tags or ''
  add(r)
  return {'new', r.id}
end

-- hold JOB OWNER ID...: 0, or the 1-based place of the first id that is not the owner's
if op == 'hold' then
  for i = 4, #ARGV do
    if redis.call('HGET', 'fleet:asset:' .. ARGV[i], 'owner') ~= ARGV[3] then return i - 3 end
  end
  redis.call('SET', 'fleet:asset:hold:' .. ARGV[2], '1', 'EX', 60)
  for i = 4, #ARGV do redis.call('SADD', 'fleet:asset:' .. ARGV[i] .. ':jobs', ARGV[2]) end
  return 0
end

-- release JOB ID...: the job was not written after all
if op == 'release' then
  redis.call('DEL', 'fleet:asset:hold:' .. ARGV[2])
  for i = 3, #ARGV do redis.call('SREM', 'fleet:asset:' .. ARGV[i] .. ':jobs', ARGV[2]) end
  return 0
end

local LIVE = { queued = true, running = true, canceling = true }

local function live(job)
  local status = redis.pcall('HGET', 'fleet:job:' .. job, 'status')
  return type(status) == 'string' and LIVE[status]
end

local function needed(id)
  local key = 'fleet:asset:' .. id .. ':jobs'
  for _, job in ipairs(redis.call('SMEMBERS', key)) do
    if live(job) then return true end
    if redis.call('EXISTS', 'fleet:job:' .. job) == 0 and redis.call('EXISTS', 'fleet:asset:hold:' .. job) == 1 then
      return true
    end
    redis.call('SREM', key, job)  -- left behind by a process that died before it wrote the job
  end
  return false
end

-- drop ID OWNER('' = any): {'none'} | {'held'} | {'gone', path, 1 if the file has no record left}
if op == 'drop' then
  local id, owner = ARGV[2], ARGV[3]
  local r = record(id)
  if not r or (owner ~= '' and r.owner ~= owner) then return {'none'} end
  if needed(id) then return {'held'} end
  if owner ~= '' and r.job_id and live(r.job_id) then
    return {'held'}
  end
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
  return {'gone', r.path, unref(r.path, id)}
end

return redis.error_reply('unknown operation ' .. op)
