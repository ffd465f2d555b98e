-- An upload became an asset, or is forgotten.
-- args: id; asset_id and expires_at: its asset, and how long that is told; ended_by: forget it only if its time was over by then.
-- Returns 1 if that is so now, 0 if there is no such upload any more, or its time is not over.
local id, key = args.id, upload_key(args.id)
if args.ended_by then
  local ends = tonumber(redis.call('ZSCORE', uploads_key, id) or '')
  if ends and ends > args.ended_by then return 0 end
end
if args.asset_id and redis.call('EXISTS', key) == 0 then return 0 end
local open = redis.call('HGET', uploads_open_key, id)
if open then
  local length, owner = string.match(open, '^(%d+) (.*)$')
  redis.call('HDEL', uploads_open_key, id)
  redis.call('SREM', uploads_whole_key, id)
  local less = string.format('%.0f', 0 - length)
  if redis.call('HINCRBY', uploads_bytes_key, owner, less) <= 0 then redis.call('HDEL', uploads_bytes_key, owner) end
end
if args.asset_id then
  redis.call('HSET', key, 'asset_id', args.asset_id, 'expires_at', num(args.expires_at))
  redis.call('ZADD', uploads_key, num(args.expires_at), id)
else
  redis.call('DEL', key)
  redis.call('ZREM', uploads_key, id)
end
return 1
