-- Take jobs whose outputs are due for their stores, each for a while.
-- args: most, each (of one store at a time), lease_s, token.
-- Returns {{job, store, how many looks at its store have failed in a row} ...}
local STORES = 100  -- that one call looks at
local at, found = now(), {}
for _, store in ipairs(redis.call('ZRANGEBYSCORE', cleared(transfers_key, 'zset'), '-inf', num(at), 'LIMIT', 0, STORES)) do
  local taken, queue = transfer_taken_key(store), transfer_queue_key(store)
  redis.call('ZREMRANGEBYSCORE', taken, '-inf', num(at))  -- whoever had them is gone
  local fails = tonumber(fields(transfer_store_key(store), 'fails')[1] or '') or 0
  local each = fails > 0 and 1 or args.each  -- one look at a store that fails decides for all that wait for it
  local room = math.min(args.most - #found, each - redis.call('ZCARD', taken))
  for _, id in ipairs(room > 0 and redis.call('ZRANGEBYSCORE', queue, '-inf', num(at), 'LIMIT', 0, room) or {}) do
    if not fields(job_key(id), 'storing')[1] then
      redis.call('ZREM', queue, id)  -- an earlier version has forgotten it
    else
      redis.call('HSET', job_key(id), 'store_token', args.token)
      redis.call('ZADD', taken, num(at + args.lease_s), id)
      redis.call('EXPIRE', taken, math.ceil(args.lease_s) + 1)
      redis.call('ZADD', queue, num(at + args.lease_s), id)
      found[#found + 1] = { id, store, fails }
    end
  end
  transfer_plan(store)
  if redis.call('ZCARD', taken) >= each then  -- nothing more until one of these is back
    redis.call('ZADD', transfers_key, 'XX', redis.call('ZRANGE', taken, 0, 0, 'WITHSCORES')[2], store)
  end
end
return found
