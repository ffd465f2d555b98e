-- Choose the blobs that are to be deleted now.  None of them is ever used again: the same bytes get another path.
-- ARGV: now, before when the last record must have gone, before when one without a record must have been found, limit
-- Returns {'schema', layout} | {'ok', path ...}; the caller deletes them, then takes them out of fleet:blob:condemned.
local other = other_schema()
if other then return other end
local at, limit = ARGV[1], ARGV[4]

local function used(path) return redis.call('EXISTS', 'fleet:blob:refs:' .. path) == 1 end

local function older(key, before) return redis.call('ZRANGEBYSCORE', key, '-inf', before, 'LIMIT', 0, limit) end

-- What versions without this sweep left: marks of writers that died, and files that were not deleted.
local LEFT_S = 3600
for _, member in ipairs(older('fleet:blob:pins', num(tonumber(at) - LEFT_S))) do
  local path, pin = string.match(member, '^([^%z]*)%z(.*)$')
  redis.call('ZREM', 'fleet:blob:pins', member)
  if path then
    redis.call('SREM', 'fleet:blob:refs:' .. path, pin)
    if not used(path) then redis.call('ZADD', 'fleet:blob:strays', 'NX', at, path) end
  end
end
for _, path in ipairs(older('fleet:blob:doomed', num(tonumber(at) - LEFT_S))) do
  redis.call('ZREM', 'fleet:blob:doomed', path)
  if not used(path) then redis.call('ZADD', 'fleet:blob:strays', 'NX', at, path) end
end

for _, member in ipairs(older('fleet:blob:unused', ARGV[2])) do
  local hash, path = string.match(member, '^(%S+) (.*)$')
  redis.call('ZREM', 'fleet:blob:unused', member)
  if not used(path) then
    redis.call('ZADD', 'fleet:blob:condemned', at, path)
    if redis.call('GET', 'fleet:blob:at:' .. hash) == path then redis.call('DEL', 'fleet:blob:at:' .. hash) end
  end
end
for _, path in ipairs(older('fleet:blob:strays', ARGV[3])) do
  redis.call('ZREM', 'fleet:blob:strays', path)
  if not used(path) then redis.call('ZADD', 'fleet:blob:condemned', at, path) end
end

local found = { 'ok' }
for _, path in ipairs(redis.call('ZRANGE', 'fleet:blob:condemned', 0, tonumber(limit) - 1)) do
  if used(path) then
    redis.call('ZREM', 'fleet:blob:condemned', path)  -- an earlier version has put it anew
  else
    redis.call('SET', 'fleet:blob:gone:' .. path, '1', 'EX', 30)  -- they wait for this mark
    found[#found + 1] = path
  end
end
return found
