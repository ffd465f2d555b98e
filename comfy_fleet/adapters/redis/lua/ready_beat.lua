-- Renew the leases that a dispatcher holds ready, add those that it was just granted, and forget those that it gave back.
-- args: dispatcher, held {NODE: RUN}, new {NODE: RUN}, dropped {NODE: RUN}.
-- Returns {how many dispatchers hold leases ready, or could; nodes that it must give back now}.
local at, lost = now(), {}
cleared(ready_leases_key, 'hash')
redis.call('ZADD', cleared(ready_holders_key, 'zset'), num(at), args.dispatcher)
redis.call('ZREMRANGEBYSCORE', ready_holders_key, '-inf', num(at - 2 * READY_S))
for node, run in pairs(args.dropped or {}) do
  if ready_lease(node, at) == run then redis.call('HDEL', ready_leases_key, node) end
end
local function keep(node, run, new)
  local held, age = ready_lease(node, at)
  local ours = held == run or (new and (not held or age > READY_S))
  if ours and may_be_ready(node) then
    redis.call('HSET', ready_leases_key, node, run .. ' ' .. num(at) .. ' ' .. args.dispatcher)
  else
    lost[#lost + 1] = node
    if held == run then redis.call('HDEL', ready_leases_key, node) end
  end
end
for node, run in pairs(args.held or {}) do keep(node, run, false) end
for node, run in pairs(args.new or {}) do keep(node, run, true) end
return { redis.call('ZCARD', ready_holders_key), lost }
