-- Take note of classes and files that an owner asked for.  args: owner, parts (each: key, about,
-- sourced: whether it says where the part is from), most, ttl_s.
local kept, at = missing_of_key(args.owner), now()
for _, part in ipairs(args.parts) do
  local readable, old = pcall(cjson.decode, redis.call('HGET', kept, part.key) or '')
  if not readable or type(old) ~= 'table' then old = {} end
  if not part.sourced and type(old.about) == 'string' then part.about = old.about end
  redis.call('HSET', kept, part.key, cjson.encode({
    asked = (tonumber(old.asked) or 0) + 1, first = tonumber(old.first) or at, last = at, about = part.about,
  }))
end
local count = redis.call('HLEN', kept)
if count > args.most then
  local found, all = {}, redis.call('HGETALL', kept)
  for i = 1, #all, 2 do
    local readable, one = pcall(cjson.decode, all[i + 1])
    found[#found + 1] = { readable and type(one) == 'table' and tonumber(one.last) or 0, all[i] }
  end
  table.sort(found, function(a, b) return a[1] < b[1] end)
  for i = 1, count - args.most do redis.call('HDEL', kept, found[i][2]) end
end
redis.call('EXPIRE', kept, args.ttl_s)
redis.call('SADD', missing_owners_key, args.owner)
