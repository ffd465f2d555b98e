-- Find leases held ready whose holder is silent, or whose node may be used no more; the caller watches from now on.
-- args: cut {NODE: RUN}: of these, those that are still so are given up: no run may begin there any more.
-- Returns a list of node and run for each.
local at, found = now(), {}
redis.call('SET', ready_watched_key, '1', 'PX', 2000)
local leases = redis.call('HGETALL', cleared(ready_leases_key, 'hash'))
for i = 1, #leases, 2 do
  local node = leases[i]
  local run, age = ready_lease(node, at)
  if redis.call('EXISTS', lease_key(node)) == 1 then
    redis.call('HDEL', ready_leases_key, node)  -- HAProxy had forgotten it, and has given the node to a run
  elseif not run or age > READY_S or not may_be_ready(node) then
    if not args.cut or args.cut[node] == (run or '') then
      found[#found + 1] = node
      found[#found + 1] = run or ''
      if args.cut then redis.call('HDEL', ready_leases_key, node) end
    end
  end
end
return found
