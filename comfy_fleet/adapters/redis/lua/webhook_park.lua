-- Send a message no more, because its record can't be read; it stays for 30 days.  args: id.
local key = webhook_key(args.id)
if redis.call('EXISTS', key) == 0 then return end
despite_full()
local receiver = fields(key, 'receiver')[1]
redis.call('HSET', key, 'state', 'unreadable', 'error', 'its record can\'t be read')
if receiver then
  redis.call('ZREM', webhook_taken_key(receiver), args.id)
  redis.call('ZREM', webhook_queue_key(receiver), args.id)
  webhook_plan(receiver)
end
