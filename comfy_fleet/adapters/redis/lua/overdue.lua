-- End queued jobs that are past their deadline.  args: limit.  ARGV: error as JSON, RQ's text of it.
-- Returns the facts for observers about each.
local at, ended = now(), {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', deadlines_key, '-inf', num(at), 'LIMIT', 0, args.limit)) do
  local f = fields(job_key(id), 'status', 'placement')
  if f[1] == 'queued' then
    ended[#ended + 1] = end_queued(id, f[2], 'expired', ARGV[2], ARGV[3], at)
  else
    redis.call('ZREM', deadlines_key, id)
  end
end
return ended
