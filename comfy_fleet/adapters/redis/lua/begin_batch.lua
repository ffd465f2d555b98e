-- Let a batch exist, all of whose items were written before, for an hour: from now on they stay, and are queued.
-- args: batch, owner, jobs (how many items are to be queued), total (items, those that were refused among them),
--       most_waiting (items of all batches that may wait to be queued), quota (see quotas.lua), idempotency {scope, hash, fingerprint}, fields (of its record: NAME -> value).
-- Returns {'schema', layout} | {'ok', created} | {'again'} | {'used', batch} | {'replay', batch} | {'stale': they are no longer there}
--       | {'full', how many wait} | {'limit', ...} as over_quota says.
local other = other_schema()
if other then return other end
local batch, idem = args.batch, args.idempotency
local idem_key = idem and idempotency_key(idem.scope, idem.hash)
if idem then
  local seen = redis.call('GET', idem_key)
  if seen then
    local made, print = string.match(seen, '^(%S+) (%S*)$')
    if made == batch then return { 'again' } end  -- our own write; the client library asked twice
    return { print == idem.fingerprint and 'replay' or 'used', made }
  end
end
local key = batch_key(batch)
if redis.call('EXISTS', key) == 1 then return { 'again' } end
if redis.call('LLEN', batch_pending_key(batch)) ~= args.jobs or redis.call('ZCARD', batch_items_key(batch)) ~= args.total then return { 'stale' } end
local at, owner = now(), args.owner
local waiting = batches_full(owner, args.jobs, args.most_waiting)
if waiting then return { 'full', tostring(waiting) } end
local over = args.quota and over_quota(args.quota, at, args.jobs, 0)
if over then return over end
if args.quota then note_submit(args.quota, at) end
for _, kept in ipairs({ batch_items_key(batch), batch_jobs_key(batch), batch_names_key(batch), batch_refused_key(batch), batch_pending_key(batch) }) do
  redis.call('PERSIST', kept)
end
redis.call('HSET', key, 'owner', owner, 'created', num(at), 'begun', num(at), 'total', args.total, 'rounds', 1, 'round_refused', args.total - args.jobs, unpack(flat(args.fields)))
redis.call('PERSIST', asset_hold_key(batch))
redis.call('ZADD', batches_key, num(at), batch)
redis.call('ZADD', batches_of_key(owner), num(at), batch)
redis.call('ZADD', batches_live_key, num(at), batch)
redis.call('ZADD', batches_busy_key, num(at), batch)
batch_waits(owner, args.jobs)
if idem then redis.call('SET', idem_key, batch .. ' ' .. idem.fingerprint, 'EX', 86400) end
return { 'ok', num(at) }
