-- Delete jobs from ComfyUI's history; everything else of them stays.  args: owner, ids.  Returns how many were hidden.
local count = 0
for _, id in ipairs(args.ids) do
  local f = fields(job_key(id), 'owner', 'completed')
  if f[1] == args.owner and f[2] then
    redis.call('HSET', job_key(id), 'hidden', 1)
    unlist_job(id, args.owner)
    count = count + 1
  elseif not f[1] then
    unlist_job(id, args.owner)  -- an earlier version has forgotten it
  end
end
return count
