-- Let items of a batch be queued again, which were written before in a list of their own.
-- args: batch, owner, list (where they are), jobs (how many), most_waiting, quota, idempotency {scope, hash, fingerprint}, as for begin_batch.lua.
-- Returns {'schema', layout} | {'ok'} | {'again'} | {'used'} | {'replay'} | {'none': there is no such batch} | {'busy': items wait to be queued}
--       | {'stale'} | {'full', how many wait} | {'limit', ...}.
local other = other_schema()
if other then return other end
local batch, idem, owner = args.batch, args.idempotency, args.owner
local idem_key = idem and idempotency_key(idem.scope, idem.hash)
if idem then
  local made, print = string.match(redis.call('GET', idem_key) or '', '^(%S+) (%S*)$')
  if made == args.list then return { 'again' } end
  if made then return { print == idem.fingerprint and 'replay' or 'used' } end
end
local key, pending = batch_key(batch), batch_pending_key(batch)
if fields(key, 'owner')[1] ~= owner then return { 'none' } end
if fields(key, 'retried')[1] == args.list then return { 'again' } end
if redis.call('EXISTS', pending) == 1 then return { 'busy' } end
if redis.call('LLEN', batch_pending_key(args.list)) ~= args.jobs then return { 'stale' } end
local at = now()
local waiting = batches_full(owner, args.jobs, args.most_waiting)
if waiting then return { 'full', tostring(waiting) } end
local over = args.quota and over_quota(args.quota, at, args.jobs, 0)
if over then return over end
if args.quota then note_submit(args.quota, at) end
redis.call('RENAME', batch_pending_key(args.list), pending)
redis.call('PERSIST', pending)
local completed = fields(key, 'completed')[1]
redis.call('PERSIST', asset_hold_key(args.list))
redis.call('HSET', key, 'retried', args.list, 'begun', num(at))
redis.call('HDEL', key, 'completed', 'cancel')
if completed then
  redis.call('HINCRBY', key, 'rounds', 1)
  for state, place in pairs(BATCH_STATES) do
    if place >= BATCH_ENDS then redis.call('HDEL', key, 'round_' .. state) end
  end
end
redis.call('ZADD', batches_live_key, num(at), batch)
redis.call('ZADD', batches_busy_key, num(at), batch)
batch_waits(owner, args.jobs)
if idem then redis.call('SET', idem_key, args.list .. ' ' .. idem.fingerprint, 'EX', 86400) end
return { 'ok' }
