-- End queued jobs that are past their deadline.  ARGV: limit, error as JSON, RQ result.  Returns how many.
local at, n = now(), 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'fleet:deadlines', '-inf', num(at), 'LIMIT', 0, tonumber(ARGV[1]))) do
  local f = fields(jobkey(id), 'status', 'placement')
  if f[1] == 'queued' then
    dequeue(id, f[2])
    end_job(id, 'expired', ARGV[2], ARGV[3], at)
    n = n + 1
  else
    redis.call('ZREM', 'fleet:deadlines', id)
  end
end
return n
