-- Note what came of a transfer.
-- args: id, store, token, again (bool: outputs are left for another try), after_s (until it), counts (bool: that try counts),
--       pause_s (for which its store is left alone; nil: the store is well), error, most_age_s (for how long a store has failed when
--       what waits for as long is given up).
-- Returns {how many transfers have ended, how many of them were given up}.
local id, store, key, at = args.id, args.store, job_key(args.id), now()
local f = fields(key, 'store_token', 'storing')
if f[1] ~= args.token or not f[2] then return { 0, 0 } end
despite_full()
redis.call('ZREM', transfer_taken_key(store), id)
redis.call('HDEL', key, 'store_token')
local about = transfer_store_key(store)
if args.pause_s then
  redis.call('HINCRBY', cleared(about, 'hash'), 'fails', 1)
  redis.call('HSET', about, 'until', num(at + args.pause_s), 'error', args.error or '')
  redis.call('HSETNX', about, 'since', num(at))
else
  redis.call('DEL', about)
end
local ended, given_up = 0, 0
if not args.again then
  transfer_close(id, at, true)
  return { 1, 0 }
end
redis.call('HSET', key, 'store_error', args.error or '')
if args.counts then redis.call('HINCRBY', key, 'store_tries', 1) end
redis.call('ZADD', transfer_queue_key(store), num(at + (args.after_s or 0)), id)
local since = tonumber(fields(about, 'since')[1] or '') or at
if args.pause_s and at - since >= args.most_age_s then
  -- What is old for another reason, because the fleet was away, waits for its tries.
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', transfer_queue_key(store), '-inf', num(at), 'LIMIT', 0, 50)) do
    local done = tonumber(fields(job_key(other), 'completed')[1] or '') or 0
    if at - math.max(since, done) >= args.most_age_s then
      transfer_give_up(other, args.error or '', at)
      ended, given_up = ended + 1, given_up + 1
    end
  end
end
transfer_plan(store)
return { ended, given_up }
