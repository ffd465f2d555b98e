-- End queued jobs that are past their deadline.  ARGV: limit, error as JSON, RQ result.  Returns what observers are told of each.
local at, ended = now(), {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'fleet:deadlines', '-inf', num(at), 'LIMIT', 0, tonumber(ARGV[1]))) do
  local f = fields(jobkey(id), 'status', 'placement')
  if f[1] == 'queued' then
    ended[#ended + 1] = end_queued(id, f[2], 'expired', ARGV[2], ARGV[3], at)
  else
    redis.call('ZREM', 'fleet:deadlines', id)
  end
end
return ended
