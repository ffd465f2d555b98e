-- Messages to webhooks (docs/adr/0054).  The script that makes what a message tells of writes it, too: neither is ever without
-- the other.  A message waits in the queue of its RECEIVER, which is an owner's server.

local WEBHOOK_KNOWN_S = 2592000  -- 30 days
local WEBHOOKS_LISTED = 1000  -- the newest messages of an owner, and as many that were given up
local WEBHOOKS_WAITING = 20000  -- messages that wait for one receiver; of more, the oldest is given up

-- Have a message tried before its time.  If that is in vain, it does not count, and the message waits for its time.
local function webhook_early(queue, id, at)
  redis.call('HSETNX', webhook_key(id), 'early', redis.call('ZSCORE', queue, id))
  redis.call('ZADD', queue, num(at), id)
end

-- When a receiver is looked at next.  Those that fail are in an index of their own, so that no number of them hides the others; they
-- are tried whenever their pause is over, even if no message is due.
local function webhook_plan(receiver)
  local first = redis.call('ZRANGE', webhook_queue_key(receiver), 0, 0, 'WITHSCORES')[2]
  redis.call('ZREM', webhook_receivers_key, receiver)
  redis.call('ZREM', webhook_failing_key, receiver)
  if not first then return end
  local pause = fields(webhook_receiver_key(receiver), 'until')[1]
  local index = pause and webhook_failing_key or webhook_receivers_key
  redis.call('ZADD', index, pause or first, receiver)
end

-- Keep a list of messages short; what is neither listed nor waits is forgotten.
local function webhook_trim(list, other)
  for _ = 1, math.min(10, redis.call('ZCARD', list) - WEBHOOKS_LISTED) do
    local id = redis.call('ZPOPMIN', list)[1]
    if not redis.call('ZSCORE', other, id) and fields(webhook_key(id), 'state')[1] ~= 'waiting' then redis.call('DEL', webhook_key(id)) end
  end
end

-- A message is tried no more, until somebody asks for it.
local function webhook_give_up(id, owner, why, at)
  redis.call('HSET', webhook_key(id), 'state', 'failed', 'error', why)
  redis.call('HDEL', webhook_key(id), 'token')
  local list = webhooks_failed_key(owner)
  redis.call('ZADD', list, num(at), id)
  webhook_trim(list, webhooks_of_key(owner))
end

-- Write a message.  message: a table with owner, type, at (a text), url, receiver and what its body is made of.
local function webhook_put(id, message)
  local key, owner, at = webhook_key(id), message.owner, tonumber(message.at)
  message.state, message.attempts = 'waiting', 0
  redis.call('HSET', cleared(key, 'hash'), unpack(flat(message)))
  redis.call('EXPIRE', key, WEBHOOK_KNOWN_S)
  local list = webhooks_of_key(owner)
  redis.call('ZADD', list, num(at), id)
  webhook_trim(list, webhooks_failed_key(owner))
  if redis.call('EXISTS', webhook_gone_key(owner, redis.sha1hex(message.url))) == 1 then
    return webhook_give_up(id, owner, 'the receiver has answered 410 Gone before: test it to begin again', at)
  end
  local queue = webhook_queue_key(message.receiver)
  redis.call('ZADD', queue, num(at), id)
  if redis.call('ZCARD', queue) > WEBHOOKS_WAITING then
    local oldest = redis.call('ZPOPMIN', queue)[1]
    webhook_give_up(oldest, owner, 'too many messages wait for this receiver', at)
  end
  webhook_plan(message.receiver)
  redis.call('PUBLISH', webhook_wake_key, id)
end

-- Tell a job's webhook that it has started, or in which state it has ended.  Whichever script is the first to see that it has started,
-- tells that: a version without webhooks may have started it.
local function webhook_tell(id, word, at)
  local key = job_key(id)
  local found = fields(key, 'webhook', 'owner', 'started', 'told', 'cached')
  if not found[1] or not found[2] then return end
  -- Only the first script that sees a job's end tells it.
  if word ~= 'started' and redis.call('ZREM', webhook_jobs_key, id) == 0 then return end
  local hook = decoded(found[1])
  if not hook.url or not hook.receiver then return end
  local function tell(word, at)
    if not string.find(' ' .. (hook.events or '') .. ' ', ' job.' .. word .. ' ', 1, true) then return end
    local message = { owner = found[2], type = 'job.' .. word, at = num(at), url = hook.url, receiver = hook.receiver, job = id, base = hook.base or '' }
    if word ~= 'started' then message.after = 'msg_' .. id .. '_started' end
    webhook_put('msg_' .. id .. '_' .. word, message)
  end
  local started = tonumber(found[3] or '')
  if started and not found[4] and not found[5] then
    redis.call('HSET', key, 'told', '1')
    if redis.call('EXISTS', webhook_key('msg_' .. id .. '_started')) == 0 then tell('started', started) end
  end
  if word ~= 'started' then tell(word, at) end
end
