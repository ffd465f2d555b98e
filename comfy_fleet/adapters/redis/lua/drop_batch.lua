-- Take items whose jobs are gone out of a batch that is being removed.  args: batch, items.
-- Returns 1 if the batch is gone, with its last item, or was before; else 0.
local batch, at = args.batch, now()
for _, item in ipairs(args.items) do
  if redis.call('EXISTS', batch_key(batch)) == 0 then return 1 end
  local id = redis.call('HGET', batch_jobs_key(batch), item)
  local f = id and fields(job_key(id), 'status', 'removed') or {}
  if not f[1] or f[2] then
    redis.call('HDEL', batch_refused_key(batch), item)
    batch_loses(batch, item, at)
  end
end
return 1 - redis.call('EXISTS', batch_key(batch))
