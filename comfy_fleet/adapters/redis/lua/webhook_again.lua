-- Send a message again, now, under the same id.  args: id, owner.
-- Returns 'none' | 'taken' (it is being sent) | 'ok'.
local id, key, at = args.id, webhook_key(args.id), now()
local f = fields(key, 'owner', 'receiver', 'url')
if f[1] ~= args.owner then return 'none' end
local receiver = f[2]
if redis.call('ZSCORE', webhook_taken_key(receiver), id) then return 'taken' end
redis.call('HSET', key, 'state', 'waiting', 'attempts', 0, 'asked', num(at))
redis.call('HDEL', key, 'early')
redis.call('EXPIRE', key, WEBHOOK_KNOWN_S)
redis.call('DEL', webhook_gone_key(args.owner, redis.sha1hex(f[3])))
redis.call('ZREM', webhooks_failed_key(args.owner), id)
redis.call('HDEL', webhook_receiver_key(receiver), 'until')  -- whoever asks knows that it answers again
redis.call('ZADD', webhook_queue_key(receiver), num(at), id)
webhook_plan(receiver)
redis.call('PUBLISH', webhook_wake_key, id)
return 'ok'
