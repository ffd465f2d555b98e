-- Note how a run with some bytes of room ended: in success, or out of memory.
-- args: family, model_bytes, pixels, owner, room, fits (bool), ttl_s, most (ends of a kind that a family keeps of one owner), most_of_all,
--       most_families.
local at, room, pixels, owner = now(), args.room, args.pixels, args.owner

-- Does a model have to fit as a whole?  Counted for all families, from the first such run for so long.
if args.model_bytes > room then
  local all = cleared(sched_memory_key('*'), 'hash')
  redis.call('HINCRBY', all, args.fits and 'ran' or 'refused', 1)
  if redis.call('TTL', all) < 0 then redis.call('EXPIRE', all, args.ttl_s) end
end
if pixels <= 0 then return end

local key = cleared(sched_memory_key(args.family), 'hash')

-- The ends of a kind that still count: { room, pixels, until, owner } each.
local function ends(field)
  local out = {}
  for _, one in ipairs(decoded(redis.call('HGET', key, field) or '[]')) do
    local sound = type(one) == 'table' and type(one[4]) == 'string' and #out < args.most_of_all
    for i = 1, 3 do sound = sound and type(one[i]) == 'number' end
    if sound and one[3] > at then out[#out + 1] = one end
  end
  return out
end

-- Without those of this owner of which it is true, and how many they were.
local function without(list, drop)
  local out = {}
  for _, one in ipairs(list) do
    if one[4] ~= owner or not drop(one) then out[#out + 1] = one end
  end
  return out, #list - #out
end

-- With this end, unless another one of its owner says as much.
local function with(list, says_as_much)
  if #without(list, says_as_much) < #list then return list end
  local own = {}
  for _, one in ipairs(list) do
    if one[4] == owner then own[#own + 1] = one end
  end
  list = without(list, function(one) return #own >= args.most and one == own[1] end)
  list[#list + 1] = { room, pixels, at + args.ttl_s, owner }
  if #list > args.most_of_all then table.remove(list, 1) end
  return list
end

-- Whether an end is as easy to run as this one, or easier; or harder.
local function easier(one) return one[1] >= room and one[2] <= pixels end
local function harder(one) return one[1] <= room and one[2] >= pixels end

local fits, fails, gone = ends('fits'), ends('fails'), 0
if args.fits then
  fails = without(fails, easier)
  fits = with(without(fits, easier), harder)
else
  fits, gone = without(fits, harder)
  if gone == 0 then fails = with(without(fails, harder), easier) end
end

local function text(list)
  local rows = {}
  for i, one in ipairs(list) do
    rows[i] = string.format('[%.0f,%.0f,%.0f,%s]', one[1], one[2], one[3], cjson.encode(one[4]))
  end
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
