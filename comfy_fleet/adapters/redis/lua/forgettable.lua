-- Jobs that are past their retention, or were removed.  From now on nobody can keep them: to see that a job's time is over and to
-- decide that it goes is one step, and whatever is forgotten of it comes after that.  args: limit.  Returns their ids.
local at, found = now(), {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', expiring_key, '-inf', num(at), 'LIMIT', 0, args.limit)) do
  local key, f = job_key(id), fields(job_key(id), 'kept', 'removed', 'forgetting', 'storing')
  if f[1] and not f[2] and not f[3] then
    redis.call('ZADD', expiring_key, num(at + KEPT_S), id)  -- an earlier version has postponed what was kept meanwhile
  elseif f[4] and not f[2] and not f[3] then
    redis.call('ZADD', expiring_key, num(at + KEPT_S), id)  -- somebody has changed the end of a job whose outputs wait for their store
  else
    if not f[3] and redis.call('TYPE', key).ok == 'hash' then redis.call('HSET', key, 'forgetting', 1) end
    found[#found + 1] = id
  end
end
return found
