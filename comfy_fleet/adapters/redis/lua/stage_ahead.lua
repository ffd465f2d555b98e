-- Name the files of a job that a node will probably take next, before they are sent there.  What was staged there for another job
-- is given up.
-- args: node, job ('': none), keep_s (for how long they stay at least), most_bytes (that may be there ahead), assets, drawn (folders for
--       each).
-- Returns {'schema', layout} or {'ok', {record, folders, whether it has to be sent} of each asset that is there or may be sent}.
local STOP_S = 5  -- within this time a file is there that was being sent until now
local KEPT_S = 3600
local other = other_schema()
if other then return other end
local node, job, at = args.node, args.job, now()
local ahead, names, ends = staged_ahead_key(node), staged_key(node), staged_ends_key(node)
local waits = job ~= '' and fields(job_key(job), 'status')[1] == 'queued' and redis.call('HGET', node_key(node), 'cordoned') ~= '1'
  and cleaner_of(node)
local files, wanted = {}, {}
for i, asset in ipairs(waits and args.assets or {}) do
  local f = fields(asset_key(asset), 'owner', 'hash', 'file_path', 'size_bytes')
  local file = f[1] and staged_file(f)
  if file and not wanted[file] then
    files[#files + 1] = { file, redis.call('HGETALL', asset_key(asset)), tonumber(f[4]) or math.huge, args.drawn[i] }
    wanted[file] = true
  end
end

local before = redis.call('HGET', cleared(ahead, 'hash'), 'job')
if before and before ~= job and string.match(fields(job_key(before), 'ahead')[1] or '', '^%S+') == node then
  redis.call('HDEL', job_key(before), 'ahead')
end
redis.call('HDEL', ahead, 'job')
for _, name in ipairs(redis.call('HKEYS', ahead)) do
  if not wanted[name] then redis.call('ZADD', ends, 'XX', 'LT', num(at + (string.find(name, ' ', 1, true) and STOP_S or 0)), name) end
end
retire_staged(node, at)
if not waits then return { 'ok', {} } end

local bytes, out = 0, {}
for _, size in ipairs(redis.call('HVALS', ahead)) do bytes = bytes + (tonumber(size) or 0) end
for _, one in ipairs(files) do
  local file, record, size, drawn = unpack(one)
  local folders, new = redis.call('HGET', names, file), 0
  if folders then
    redis.call('ZADD', ends, 'GT', num(at + args.keep_s), file)
  elseif bytes + size <= args.most_bytes then
    bytes, folders, new, file = bytes + size, drawn, 1, 'ahead ' .. drawn
    redis.call('HSET', names, file, drawn)
    redis.call('ZADD', ends, num(at + args.keep_s), file)
    redis.call('HSET', ahead, file, size)
  end
  if folders then out[#out + 1] = { record, folders, new } end
end
redis.call('HSET', ahead, 'job', job)
redis.call('EXPIRE', ahead, KEPT_S)
redis.call('HSET', job_key(job), 'ahead', node .. ' ' .. num(at + args.keep_s))
return { 'ok', out }
