-- Put jobs of earlier versions into their owners' lists.  args: ids.  Returns how many are listed.
local count = 0
for _, id in ipairs(args.ids) do
  local list = list_job(id)
  if list then count = count + 1 end
  if list == 'pending' or list == 'in_progress' then
    local f = fields(job_key(id), 'owner', 'number')
    redis.call('ZADD', live_key(f[1]), 'NX', tonumber(f[2] or '') or 0, id)
  end
end
return count
