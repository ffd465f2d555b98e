-- Cancel those of an owner's jobs that wait; none that runs.  args: owner, ids.
-- Returns the facts for observers of each that ended.
local ended, at = {}, now()
for _, followers in ipairs({ true, false }) do  -- followers first: else each would lead for a moment
  for _, id in ipairs(args.ids) do
    local f = fields(job_key(id), 'owner', 'status', 'placement', 'follows')
    if f[1] == args.owner and f[2] == 'queued' and (not followers or f[4]) then
      ended[#ended + 1] = end_queued(id, f[3], 'canceled', '', '', at)
      redis.call('HSET', job_key(id), 'cancel', 1)
    end
  end
end
return ended
