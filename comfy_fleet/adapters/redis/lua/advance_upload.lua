-- Note how many bytes of an upload are on the disk.  args: id, offset (text), expires_at.
-- Returns 1, or 0 if there is no such upload, or it has become an asset.
if redis.call('HEXISTS', uploads_open_key, args.id) == 0 then return 0 end
local key = upload_key(args.id)
redis.call('HSET', key, 'offset', args.offset, 'expires_at', num(args.expires_at))
redis.call('ZADD', uploads_key, num(args.expires_at), args.id)
if redis.call('HGET', key, 'length') == args.offset then redis.call('SADD', uploads_whole_key, args.id) end
return 1
