-- Take messages that are due, each for a while, to send them.
-- args: most (messages), most_failing (of them to receivers that fail), each (that one receiver gets at a time), each_owner (that
--       the caller sends at a time of one owner's), sending (how many these are now, by owner), lease_s, token.
-- Returns {{id, how many tries of its receiver have failed in a row, its record} ...}
local RECEIVERS = 256  -- that one call looks at
local at, found, sending = now(), {}, args.sending

local function take(index, most, each)
  local receivers = redis.call('ZRANGEBYSCORE', cleared(index, 'zset'), '-inf', num(at), 'LIMIT', 0, RECEIVERS)
  local passed = {}  -- whose owners have their places
  for _, receiver in ipairs(receivers) do
    if most <= 0 then return end
    local taken, queue = webhook_taken_key(receiver), webhook_queue_key(receiver)
    redis.call('ZREMRANGEBYSCORE', taken, '-inf', num(at))  -- whoever had them is gone
    local room = math.min(most, each - redis.call('ZCARD', taken))
    local fails = tonumber(fields(webhook_receiver_key(receiver), 'fails')[1] or '') or 0
    local ids = room > 0 and redis.call('ZRANGEBYSCORE', queue, '-inf', num(at), 'LIMIT', 0, 2 * room) or {}
    if #ids == 0 and room > 0 and fails > 0 then
      -- Only messages of which each has its own long pause: the next one is tried before its time, to see if the receiver is back.
      ids = redis.call('ZRANGE', queue, 0, 0)
      if ids[1] then webhook_early(queue, ids[1], at) end
    end
    for _, id in ipairs(ids) do
      if room <= 0 then break end
      local key = webhook_key(id)
      local f = fields(key, 'state', 'after', 'owner')
      local owner = f[3] or ''
      if f[1] ~= 'waiting' then  -- or what it has can't be read
        redis.call('ZREM', queue, id)  -- it is known no more
      elseif f[2] and redis.call('ZSCORE', queue, f[2]) and fields(webhook_key(f[2]), 'attempts')[1] == '0' then
        redis.call('ZADD', queue, num(at + 0.5), id)  -- a job's end is told after its start, if that can be told at all
      elseif (sending[owner] or 0) >= args.each_owner then
        passed[#passed + 1] = receiver
        break
      else
        redis.call('HSET', key, 'token', args.token)
        redis.call('ZADD', taken, num(at + args.lease_s), id)
        redis.call('EXPIRE', taken, math.ceil(args.lease_s) + 1)
        redis.call('ZADD', queue, num(at + args.lease_s), id)
        found[#found + 1] = { id, fails, redis.call('HGETALL', key) }
        room, most, sending[owner] = room - 1, most - 1, (sending[owner] or 0) + 1
      end
    end
    webhook_plan(receiver)
    if redis.call('ZCARD', taken) >= each then  -- nothing more until one of these is back
      redis.call('ZADD', index, 'XX', redis.call('ZRANGE', taken, 0, 0, 'WITHSCORES')[2], receiver)
    end
  end
  if #receivers == RECEIVERS then  -- others may stand behind them
    for _, receiver in ipairs(passed) do redis.call('ZADD', index, 'XX', num(at + 1), receiver) end
  end
end

take(webhook_failing_key, math.min(args.most_failing, args.most), 1)
take(webhook_receivers_key, args.most - #found, args.each)
return found
