-- A page of an owner's jobs by when they were made, in some of the lists that ComfyUI's clients ask for.
-- args: owner, lists, offset, limit, oldest (bool: the oldest first).
-- Returns {how many there are, id, list ...}.
local walk = args.oldest and 'ZRANGE' or 'ZREVRANGE'
local alone = #args.lists == 1
local total, heads, wanted = 0, {}, {}
for _, list in ipairs(args.lists) do
  wanted[list] = true
  local key = listed_key(args.owner, list)
  total = total + redis.call('ZCARD', key)
  local first = alone and args.offset or 0
  heads[#heads + 1] = { list = list, at = 1, rows = redis.call(walk, key, first, args.offset + args.limit - 1, 'WITHSCORES') }
end
local skip, out = alone and 0 or args.offset, { 0 }
for place = 1, skip + args.limit do
  local best
  for _, head in ipairs(heads) do
    local id = head.rows[head.at]
    if id then
      local row = { id, tonumber(head.rows[head.at + 1]), head }
      local before = best and (row[2] < best[2] or (row[2] == best[2] and row[1] < best[1]))
      if not best or before == (args.oldest and true or false) then best = row end
    end
  end
  if not best then break end
  local head = best[3]
  head.at = head.at + 2
  if place > skip then
    local f = fields(job_key(best[1]), 'status')
    local list = f[1] and LIST_OF[f[1]]
    if list ~= head.list then  -- a version that knows no such lists has changed it
      redis.call('ZREM', listed_key(args.owner, head.list), best[1])
      list = mend_job(best[1], args.owner)
      if not wanted[list or ''] then total = total - 1 end
    end
    if wanted[list or ''] then
      out[#out + 1] = best[1]
      out[#out + 1] = list
    end
  end
end
out[1] = total
return out
