-- Note how a run with some bytes of room ended: in success, or out of memory.
-- args: family, model_bytes, pixels, room, fits (bool), ttl_s, most (ends of a kind that a family keeps), most_families.
local at, room, pixels = now(), args.room, args.pixels
local until_ = at + args.ttl_s

-- Does a model have to fit as a whole?  Counted for all families, from the first such run for so long.
if args.model_bytes > room then
  local all = cleared(sched_memory_key('*'), 'hash')
  redis.call('HINCRBY', all, args.fits and 'ran' or 'refused', 1)
  if redis.call('TTL', all) < 0 then redis.call('EXPIRE', all, args.ttl_s) end
end
if pixels <= 0 then return end

local key = cleared(sched_memory_key(args.family), 'hash')

-- The ends of a kind that still count: { room, pixels, until } each.
local function ends(field)
  local ok, found = pcall(cjson.decode, redis.call('HGET', key, field) or '[]')
  local out = {}
  if not ok or type(found) ~= 'table' then return out end
  for i = 1, math.min(#found, args.most) do
    local one = found[i]
    if type(one) == 'table' and type(one[1]) == 'number' and type(one[2]) == 'number' and type(one[3]) == 'number' and one[3] > at then
      out[#out + 1] = one
    end
  end
  return out
end

-- Without those of which this is true, and how many they were.
local function without(list, drop)
  local out = {}
  for _, one in ipairs(list) do if not drop(one) then out[#out + 1] = one end end
  return out, #list - #out
end

local function some(list, is)
  for _, one in ipairs(list) do if is(one) then return true end end
  return false
end

local fits, fails, gone = ends('fits'), ends('fails'), 0
if args.fits then
  fails = without(fails, function(one) return one[1] >= room and one[2] <= pixels end)
  fits = without(fits, function(one) return one[1] >= room and one[2] <= pixels end)
  if not some(fits, function(one) return one[1] <= room and one[2] >= pixels end) then fits[#fits + 1] = { room, pixels, until_ } end
else
  fits, gone = without(fits, function(one) return one[1] <= room and one[2] >= pixels end)
  if gone == 0 then
    fails = without(fails, function(one) return one[1] <= room and one[2] >= pixels end)
    if not some(fails, function(one) return one[1] >= room and one[2] <= pixels end) then fails[#fails + 1] = { room, pixels, until_ } end
  end
end
while #fits > args.most do table.remove(fits, 1) end
while #fails > args.most do table.remove(fails, 1) end

local function text(list)
  local rows = {}
  for i, one in ipairs(list) do rows[i] = string.format('[%.0f,%.0f,%.0f]', one[1], one[2], one[3]) end
  return '[' .. table.concat(rows, ',') .. ']'
end
redis.call('HSET', key, 'fits', text(fits), 'fails', text(fails))
redis.call('EXPIRE', key, args.ttl_s)
local families = cleared(sched_memories_key, 'zset')
redis.call('ZADD', families, at, args.family)
for _ = 1, 10 do
  if redis.call('ZCARD', families) <= args.most_families then break end
  redis.call('DEL', sched_memory_key(redis.call('ZPOPMIN', families)[1]))
end
