-- The places of some jobs among all queued jobs.  args: ids, most (classes of placement to look at in one call).
-- Returns the place of each of the first ids, at least one: 1 for the next job, 0 for one that does not wait.
local places, looked = {}, 0
local classes = redis.call('SCARD', placements_key)
for _, id in ipairs(args.ids) do
  if #places > 0 and looked + classes > args.most then break end
  local f = fields(job_key(id), 'status', 'placement')
  if f[1] == 'queued' and f[2] then
    places[#places + 1] = place_of(id, f[2])
    looked = looked + classes
  else
    places[#places + 1] = 0
  end
end
return places
