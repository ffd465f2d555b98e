-- Choose the blobs to delete now.  They are never used again: the same bytes get another path.
-- args: now, unused_before (when the last record must have gone), strays_before (when one without a record must have
--       been found), limit.
-- Returns {'schema', layout} | {'ok', path ...}; the caller deletes them, then takes them out of the condemned.
local other = other_schema()
if other then return other end
local at = num(args.now)

local function used(path) return redis.call('EXISTS', blob_refs_key(path)) == 1 end

local function older(key, before) return redis.call('ZRANGEBYSCORE', key, '-inf', num(before), 'LIMIT', 0, args.limit) end

-- Left by versions without this sweep: marks of dead writers, and files that were not deleted.
local LEFT_S = 3600
for _, member in ipairs(older(blob_pins_key, args.now - LEFT_S)) do
  local path, pin = string.match(member, '^([^%z]*)%z(.*)$')
  redis.call('ZREM', blob_pins_key, member)
  if path then
    redis.call('SREM', blob_refs_key(path), pin)
    if not used(path) then redis.call('ZADD', blob_strays_key, 'NX', at, path) end
  end
end
for _, path in ipairs(older(blob_doomed_key, args.now - LEFT_S)) do
  redis.call('ZREM', blob_doomed_key, path)
  if not used(path) then redis.call('ZADD', blob_strays_key, 'NX', at, path) end
end

for _, member in ipairs(older(blob_unused_key, args.unused_before)) do
  local hash, path = string.match(member, '^(%S+) (.*)$')
  redis.call('ZREM', blob_unused_key, member)
  if not used(path) then
    redis.call('ZADD', blob_condemned_key, at, path)
    if redis.call('GET', blob_at_key(hash)) == path then redis.call('DEL', blob_at_key(hash)) end
  end
end
for _, path in ipairs(older(blob_strays_key, args.strays_before)) do
  redis.call('ZREM', blob_strays_key, path)
  if not used(path) then redis.call('ZADD', blob_condemned_key, at, path) end
end

local found = { 'ok' }
for _, path in ipairs(redis.call('ZRANGE', blob_condemned_key, 0, args.limit - 1)) do
  if used(path) then
    redis.call('ZREM', blob_condemned_key, path)  -- an earlier version has put it anew
  else
    redis.call('SET', blob_gone_key(path), '1', 'EX', 30)  -- they wait for this mark
    found[#found + 1] = path
  end
end
return found
