-- Note what came of sending a message.
-- args: id, token, outcome ('delivered' | 'again' | 'failed' | 'gone'), status (HTTP's, or nil), error (why it was not delivered),
--       after_s (until the next try), pause_s (for which its receiver is left alone; nil: the receiver is well),
--       most_age_s (for how long the receiver has failed at least when messages as old are given up).
-- Returns 1 if it was noted, 0 if somebody else has the message by now.
local AWAY_S = 30  -- a receiver that has failed for so long was away: it gets what waits when it is back
local EARLY = 1000  -- of the messages that wait for their next try then
local id, key, at = args.id, webhook_key(args.id), now()
local f = fields(key, 'owner', 'receiver', 'url', 'token', 'state', 'early')
if not f[1] or f[5] ~= 'waiting' then return 0 end
-- Delivered is delivered, whoever has it now.
if f[4] ~= args.token and args.outcome ~= 'delivered' then return 0 end
despite_full()
local owner, receiver = f[1], f[2]
local queue, about = webhook_queue_key(receiver), webhook_receiver_key(receiver)
local taken = webhook_taken_key(receiver)
redis.call('ZREM', taken, id)
-- What was tried before its time in vain waits for its time, as if it had not been tried.
local early = (args.outcome == 'again' or (args.outcome == 'failed' and args.pause_s)) and f[6]
if not early then redis.call('HINCRBY', key, 'attempts', 1) end
redis.call('HSET', key, 'tried', num(at), 'status', args.status or '', 'error', args.error or '')
redis.call('HDEL', key, 'token', 'early')
local since = tonumber(fields(about, 'since')[1] or '') or at  -- its receiver fails
if args.pause_s then
  redis.call('HINCRBY', cleared(about, 'hash'), 'fails', 1)
  redis.call('HSET', about, 'until', num(at + args.pause_s))
  redis.call('HSETNX', about, 'since', num(at))
  redis.call('EXPIRE', about, WEBHOOK_KNOWN_S)
else
  redis.call('DEL', about)
  -- Not at each answer among failures: a server of which only one URL fails would be asked all the time.
  for _, other in ipairs(at - since >= AWAY_S and redis.call('ZRANGEBYSCORE', queue, '(' .. num(at), '+inf', 'LIMIT', 0, EARLY) or {}) do
    if other ~= id and not redis.call('ZSCORE', taken, other) then webhook_early(queue, other, at) end
  end
end
if early then
  redis.call('ZADD', queue, early, id)
elseif args.outcome == 'again' then
  redis.call('ZADD', queue, num(at + args.after_s), id)
else
  redis.call('ZREM', queue, id)
  if args.outcome == 'delivered' then
    redis.call('HSET', key, 'state', 'delivered')
    redis.call('DEL', webhook_gone_key(owner, redis.sha1hex(f[3])))
    redis.call('ZREM', webhooks_failed_key(owner), id)
    if not redis.call('ZSCORE', webhooks_of_key(owner), id) then redis.call('DEL', key) end  -- it was listed no more
  else
    if args.outcome == 'gone' then redis.call('SET', webhook_gone_key(owner, redis.sha1hex(f[3])), '1', 'EX', WEBHOOK_KNOWN_S) end
    webhook_give_up(id, owner, args.error, at)
  end
end
if args.pause_s then
  -- While a receiver fails, few of its messages are tried.  If it has failed for as long as a message is tried, those that are due and
  -- as old end untried.  What is old for another reason, because the fleet was away, waits for its tries.
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', num(at), 'LIMIT', 0, 50)) do
    local f = fields(webhook_key(other), 'at', 'asked')
    if at - math.max(since, tonumber(f[2] or f[1] or '') or 0) >= args.most_age_s then
      redis.call('ZREM', queue, other)
      webhook_give_up(other, owner, args.error, at)
    end
  end
end
webhook_plan(receiver)
return 1
