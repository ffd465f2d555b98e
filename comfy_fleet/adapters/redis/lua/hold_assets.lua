-- Keep assets for a job that is about to be written.  args: job, owner, ids, seconds.
-- Returns 0, or the place (from 1) of the first id that is not the owner's.
for place, id in ipairs(args.ids) do
  if redis.call('HGET', asset_key(id), 'owner') ~= args.owner then return place end
end
redis.call('SET', asset_hold_key(args.job), '1', 'EX', args.seconds)
for _, id in ipairs(args.ids) do redis.call('SADD', asset_jobs_key(id), args.job) end
return 0
