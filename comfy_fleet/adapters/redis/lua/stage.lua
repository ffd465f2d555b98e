-- Name the files that a run's graph reads, on its node.
-- args: run, token, keep_s (for how long they stay at least), assets, drawn (folders for each, in case it has none there).
-- Returns {} if the lease is gone, else for each asset {record, folders, whether they are new}; a record without fields:
--          the asset is gone.
local run = args.run
if not owned(run, args.token) then return {} end
despite_full()
local node, at = redis.call('HGET', run_key(run), 'node'), now()
retire_staged(node, at)
local out, needed = {}, {}
for i, asset in ipairs(args.assets) do
  local record = redis.pcall('HGETALL', asset_key(asset))
  if record.err then record = {} end
  local f, folders, new = fields(asset_key(asset), 'owner', 'hash', 'file_path'), '', 0
  if f[1] then
    local file = staged_file(f)
    folders, new = staged_in(node, file, args.drawn[i], at, args.keep_s)
    needed[#needed + 1] = file
  end
  out[i] = { record, folders, new }
end
redis.call('HSET', run_key(run), 'staged', table.concat(needed, ' '))
if needed[1] then redis.call('HDEL', staged_ahead_key(node), unpack(needed)) end  -- not in vain
local ends = staged_ends_key(node)
local more = redis.call('ZCARD', ends) - MOST_STAGED
if more > 0 then
  for _, file in ipairs(redis.call('ZRANGE', ends, 0, more - 1)) do redis.call('ZADD', ends, num(at), file) end
  retire_staged(node, at, true)
end
return out
