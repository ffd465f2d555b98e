-- Put right what earlier versions beside this one do to waiting jobs, and bring RQ's view of them up to date.
-- One process of the fleet does so at a time.  args: every_ms (between two such calls), most (jobs to look at).
-- Returns {'schema', layout} | {'ok'}.
local other = other_schema()
if other then return other end
if redis.call('EXISTS', queued_key, sched_count_key, placements_key, rq_queue_key) == 0 then return { 'ok' } end
if not redis.call('SET', queued_tended_key, '1', 'NX', 'PX', args.every_ms) then return { 'ok' } end
cleared(queued_key, 'zset')
cleared(sched_count_key, 'hash')
adopt(args.most)
-- All are looked at in turns. Such a version may have ended some; and what claims choose by follows from the records.
-- Whether a job is in every index in which a claim may look for it.
local function listed(id, C, O, F)
  return sched_call('ZSCORE', sched_jobs_key(C, O), id) and sched_call('ZSCORE', sched_loads_key(C, O, F), id)
    and (sched_call('ZSCORE', sched_turns_key(C, O), id) or sched_call('ZSCORE', sched_late_key(C, O), id))
    and sched_call('ZSCORE', sched_owners_key(C), O) and sched_call('ZSCORE', sched_family_key(C, F), O)
end

local start = tonumber(redis.call('GET', queued_checked_key) or '') or 0
local ids, left, counted = redis.call('ZRANGE', queued_key, start, start + args.most - 1), 0, {}
for _, id in ipairs(ids) do
  local f = fields(job_key(id), 'status', 'placement', 'owner', 'family')
  if f[1] ~= 'queued' or not f[2] or not f[3] then
    dequeue(id, f[2])
  else
    left = left + 1
    if not counted[f[2]] then redis.call('HSETNX', sched_count_key, f[2], 1) end
    counted[f[2]] = true
    if not listed(id, f[2], f[3], f[4] or '') then
      sched_remove(id)
      sched_add(id, now(), {})
    end
  end
end
local next_start = #ids < args.most and 0 or start + left
if next_start ~= start then redis.call('SET', queued_checked_key, next_start) end
for i, placement in ipairs(redis.call('HKEYS', sched_count_key)) do
  if i > args.most then break end
  if redis.call('EXISTS', sched_owners_key(placement)) == 0 then redis.call('HDEL', sched_count_key, placement) end
end
rq_show()
return { 'ok' }
