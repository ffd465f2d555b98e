-- Cancel those of an owner's jobs that wait; none that runs.  args: owner, ids.
-- Returns the facts for observers of each that ended.
local ended, at = {}, now()
for _, id in ipairs(args.ids) do
  local f = fields(job_key(id), 'owner', 'status', 'placement')
  if f[1] == args.owner and f[2] == 'queued' then
    ended[#ended + 1] = end_queued(id, f[3], 'canceled', '', '', at)
    redis.call('HSET', job_key(id), 'cancel', 1)
  end
end
return ended
