-- Add the record of an upload whose bytes are there.  args: record; if it must take no other's name, also stem and suffix of
-- its name; quota (see quotas.lua).
-- Returns {'schema', layout} | {'limit', ...} as over_quota says | {'ok', 1 if the bytes are new to the owner, id, path}.
-- Another id: the owner has this upload already.
-- Another path: the same bytes are stored there already.
local r = args.record

-- The record's name with a number, and the upload, or the job's file, that has it.
local function numbered(n)
  local name = n == 0 and r.file_path or args.stem .. ' (' .. string.format('%.0f', n) .. ')' .. args.suffix
  local listed = r.folder and '/' .. r.folder .. '/' .. name or name
  local id = redis.call('ZREVRANGE', asset_names_key(r.owner, listed), 0, 0)[1]
  if not id and r.folder then id = redis.call('HGET', saved_files_key(r.owner), r.folder .. '/' .. name) or nil end
  return name, listed, id
end

local function is_taken(n)
  local _, _, id = numbered(n)
  return id ~= nil
end

-- Give the record the first free name, or return the upload that has such a name and the same bytes.
local function find_name()
  local n = 0
  while n < 1000 do
    local name, listed, id = numbered(n)
    if not id then r.file_path, r.listed = name, r.folder and listed return end
    if redis.call('HGET', asset_key(id), 'hash') == r.hash then return asset_of(id) end
    n = n + 1
  end
  -- Of very many files only a free number is sought, by doubling and halving.
  local low, high = n - 1, 2 * n
  while is_taken(high) do low, high = high, 2 * high end
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    if is_taken(middle) then low = middle else high = middle end
  end
  local name, listed = numbered(high)
  r.file_path, r.listed = name, r.folder and listed
end

local other = other_schema()
if other then return other end
local same = args.stem and find_name()
if same then
  stay(same, r)
  return { 'ok', 0, same.id, same.path }
end
local over = args.quota and over_quota(args.quota, now(), 0, tonumber(r.size_bytes) or 0)
if over then return over end
local at = blob_at_key(r.hash)
local there = redis.call('GET', at)
-- A path that is being deleted, or was, is never used again.  It may also wait for the sweep, if a walk has found it.
if there and not redis.call('ZSCORE', blob_condemned_key, there)
  and (redis.call('EXISTS', blob_refs_key(there)) == 1
    or redis.call('ZSCORE', blob_unused_key, r.hash .. ' ' .. there)) then
  r.path = there
else
  redis.call('SET', at, r.path)
end
return { 'ok', add_asset(r), r.id, r.path }
