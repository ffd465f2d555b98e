-- Put right what earlier versions beside this one do to waiting jobs, and bring RQ's view of them up to date.
-- One process of the fleet does so at a time.  args: every_ms (between two such calls), most (jobs to look at).
-- Returns {'schema', layout} | {'ok'}.
local other = other_schema()
if other then return other end
if not redis.call('SET', queued_tended_key, '1', 'NX', 'PX', args.every_ms) then return { 'ok' } end
adopt(args.most)
-- Leftovers: such a version has ended these jobs.  All are looked at in turns.
local start = tonumber(redis.call('GET', queued_checked_key) or '') or 0
local ids, left = redis.call('ZRANGE', queued_key, start, start + args.most - 1), 0
for _, id in ipairs(ids) do
  local f = fields(job_key(id), 'status', 'placement')
  if f[1] == 'queued' then left = left + 1 else dequeue(id, f[2]) end
end
redis.call('SET', queued_checked_key, #ids < args.most and 0 or start + left)
if redis.call('EXISTS', queued_key) == 0 then redis.call('DEL', sched_count_key) end
rq_show()
return { 'ok' }
