-- Write a new upload that will come in parts.
-- args: record (texts), expires_at, each, all, each_bytes, all_bytes (what uploads that have not ended may be), quota (see quotas.lua).
-- Returns {'schema', layout} | {'limit', ...} as over_quota says | {'full', user or all, most, used, 1 if these are bytes} | {'ok'}.
local other = other_schema()
if other then return other end
local r = args.record
local length = tonumber(r.length)
local mine, all, my_bytes, bytes = 0, 0, 0, 0
local had = redis.call('HGETALL', uploads_open_key)
for i = 2, #had, 2 do
  local size, owner = string.match(had[i], '^(%d+) (.*)$')
  all, bytes = all + 1, bytes + size
  if owner == r.owner then mine, my_bytes = mine + 1, my_bytes + size end
end
local function whole(n) return string.format('%.0f', n) end
if mine >= args.each then return { 'full', 'user', whole(args.each), whole(mine), 0 } end
if my_bytes + length > args.each_bytes then return { 'full', 'user', whole(args.each_bytes), whole(my_bytes), 1 } end
if all >= args.all then return { 'full', 'all', whole(args.all), whole(all), 0 } end
if bytes + length > args.all_bytes then return { 'full', 'all', whole(args.all_bytes), whole(bytes), 1 } end
local over = args.quota and over_quota(args.quota, now(), 0, length)
if over then return over end
redis.call('HSET', upload_key(r.id), unpack(flat(r)))
redis.call('ZADD', uploads_key, num(args.expires_at), r.id)
redis.call('HSET', uploads_open_key, r.id, r.length .. ' ' .. r.owner)
redis.call('HINCRBY', uploads_bytes_key, r.owner, r.length)
if length == 0 then redis.call('SADD', uploads_whole_key, r.id) end
return { 'ok' }
