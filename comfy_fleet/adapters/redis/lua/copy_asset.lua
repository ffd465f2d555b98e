-- Add a record over bytes that the owner has; on a full disk only an existing one.
-- args: owner, hash, name (any if there is none), record (without path, size_bytes and content_type), full (bool).
-- Returns {'schema', layout} | {'same', id} | {'new', id} | {'copy', id of an output to copy the bytes of} | {'none'} | {'full'}
local other = other_schema()
if other then return other end
local owner, hash, name, r = args.owner, args.hash, args.name, args.record
local same = blob_same_key(owner, hash)
local there
if name then
  there = redis.call('HGET', same, name)
else
  there = redis.call('HRANDFIELD', same)
  if there then there = redis.call('HGET', same, there) end
end
if there then
  local old = asset_of(there)
  if old and old.tags == (r.tags or old.tags) then
    stay(old, r)
    return { 'same', there }
  end
end
local source = redis.call('HRANDFIELD', same)
if source then
  source = redis.call('HGET', same, source)
else
  source = redis.call('SRANDMEMBER', blob_owner_key(owner, hash))
end
local from = source and asset_of(source)
if not from then return { 'none' } end
if args.full then return { 'full' } end
-- Earlier versions delete a job's folder with everything in it.
if string.sub(from.path, 1, 5) == 'jobs/' then return { 'copy', source } end
r.owner, r.hash, r.path = owner, hash, from.path
r.size_bytes, r.content_type = from.size_bytes, from.content_type
r.file_path = name or from.file_path
r.tags = r.tags or ''
add_asset(r)
return { 'new', r.id }
