-- Compare what owners' lists say of their live jobs with the records, which versions without such lists may have changed.
-- args: owners, start (place in the first one's list), most (jobs and owners to look at).
-- Returns {'schema', layout} | {'ok', owners that are done, place in the next one's list, jobs that were put right}.
local other = other_schema()
if other then return other end
local left, start, mended = args.most, args.start, 0
for i, owner in ipairs(args.owners) do
  local ids = redis.call('ZRANGE', live_key(owner), start, start + left - 1)
  local place = start
  for _, id in ipairs(ids) do
    local list = LIST_OF[fields(job_key(id), 'status')[1] or '']
    local agrees = (list == 'pending' or list == 'in_progress') and redis.call('ZSCORE', listed_key(owner, list), id)
    if not agrees then
      local _, changed = mend_job(id, owner)
      if changed then mended = mended + 1 end
      agrees = redis.call('ZSCORE', live_key(owner), id)
    end
    if agrees then place = place + 1 end
  end
  if #ids == left then return { 'ok', i - 1, place, mended } end
  left, start = left - #ids - 1, 0
  if left <= 0 then return { 'ok', i, 0, mended } end
end
return { 'ok', #args.owners, 0, mended }
