-- Keep a job and what it uses beyond its retention, or let its retention begin anew.
-- args: job, owner, keep (bool), most (jobs that the owner may keep).
-- Returns {'schema', layout} | {'none'} | {'full', how many are kept} | {'ok'}.
local other = other_schema()
if other then return other end
local id, key = args.job, job_key(args.job)
local f = fields(key, 'owner', 'status', 'kept', 'expires_in', 'assets', 'expires', 'removed', 'forgetting')
local at = now()
local final = redis.call('ZSCORE', expiring_key, id)
if f[1] ~= args.owner or f[7] or f[8] then return { 'none' } end
if not f[3] and final and (tonumber(f[6] or '') or 0) <= at then return { 'none' } end  -- its files go any moment
local ends
if args.keep then
  if f[3] then return { 'ok' } end
  local kept = redis.call('SCARD', kept_key(args.owner))
  if kept >= args.most then return { 'full', tostring(kept) } end
  ends = at + KEPT_S
  redis.call('SADD', cleared(kept_key(args.owner), 'set'), id)
  redis.call('HSET', key, 'kept', f[4] or '604800', 'expires_in', KEPT_S)
  for asset in string.gmatch(f[5] or '', '%S+') do keep_asset(asset, id, at) end
else
  if not f[3] then return { 'ok' } end
  local seconds = tonumber(f[3]) or 604800
  ends = at + seconds
  redis.call('HSET', key, 'expires_in', seconds)
  unkeep(id, args.owner, ends)
end
redis.call('HSET', key, 'expires', num(ends))
for _, asset in ipairs(redis.call('HVALS', asset_outputs_key(id))) do  -- they go with the job: only what is shown
  local a = fields(asset_key(asset), 'expires_at', 'kept_from')
  if a[1] and not a[2] then redis.call('HSET', asset_key(asset), 'expires_at', num(ends)) end
end
if final then
  redis.call('ZADD', expiring_key, num(ends), id)
  rq_stays(id, f[2], ends)
end
return { 'ok' }
