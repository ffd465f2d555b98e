-- Add the record of an asset whose bytes are there.  args: record; of an output also run, token.
-- Returns {'schema', layout} | {'lost'} | {'ok', 1 if the bytes are new to the owner, id, path}.
-- Lost: the job has another run now, or the run another token.
-- Another id: the job has this output already.  Another path: the same bytes are stored there already.
local r = args.record
if r.job_id then
  -- A run's outputs are accepted under any layout, like the run's end.
  if not owned(args.run, args.token) or fields(run_key(args.run), 'job')[1] ~= r.job_id then return { 'lost' } end
  local outputs = asset_outputs_key(r.job_id)
  local there = redis.call('HGET', outputs, r.hash .. '\0' .. r.file_path)
  local record = there and asset_of(there)
  if record and there ~= r.id then return { 'ok', 0, there, record.path } end
  for _, field in ipairs(redis.call('HKEYS', outputs)) do
    if string.sub(field, 1, #r.hash) == r.hash then
      local twin = asset_of(redis.call('HGET', outputs, field))
      if twin then r.path = twin.path break end
    end
  end
else
  local other = other_schema()
  if other then return other end
  local at = blob_at_key(r.hash)
  local there = redis.call('GET', at)
  -- A path that is being deleted, or was, is never used again.  It may also wait for the sweep, if a walk has found it.
  if there and not redis.call('ZSCORE', blob_condemned_key, there)
    and (redis.call('EXISTS', blob_refs_key(there)) == 1
      or redis.call('ZSCORE', blob_unused_key, r.hash .. ' ' .. there)) then
    r.path = there
  else
    redis.call('SET', at, r.path)
  end
end
return { 'ok', add_asset(r), r.id, r.path }
