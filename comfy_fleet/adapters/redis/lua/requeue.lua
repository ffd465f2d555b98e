-- Give a run's job back to its place in the queue, or end it when its attempts are used up.
-- args: run, token, counts (bool), placement (another one), rerun_nodes (nodes to keep from the cache, one a line),
--       reason {code, message}, times (as for finish.lua).
-- ARGV: error as JSON, RQ's text of it, last progress as JSON or '', what its nodes handed over as JSON or '' (kept if the job
--       ends here).
-- Returns {the job's state, facts for observers about each follower that ended with it ...}, or {} if the lease is gone.
local run, err = args.run, ARGV[2]
if not owned(run, args.token) then return {} end
despite_full()
local r = redis.call('HMGET', run_key(run), 'job', 'node', 'since', 'merged')
local id, counts = r[1], args.counts and not r[4]  -- what befell several jobs at once need not befall the one alone
local key = job_key(id)
local f = redis.call('HMGET', key, 'cancel', 'max_attempts', 'placement', 'rank', 'flight')
local attempt = redis.call('HINCRBY', key, 'attempt', counts and 1 or 0)
local at = now()
note_attempt(run, id, r[2], r[3], args.reason, counts, at, args.times)
drop_run(run, id, r[2])
if f[1] == '1' then
  keep_ui(id, ARGV[5])
  end_job(id, 'canceled', '', '', at)
  return { 'canceled', unpack(ended_followers) }
end
if counts and attempt >= tonumber(f[2]) then
  if ARGV[4] ~= '' then redis.call('HSET', key, 'progress', ARGV[4]) end
  keep_ui(id, ARGV[5])
  end_job(id, 'failed', err, ARGV[3], at)
  return { 'failed', unpack(ended_followers) }
end
note_error(r[2], id, err, at)
redis.call('HSET', key, 'status', 'queued', 'last_error', err, 'bust', args.rerun_nodes)
redis.call('HDEL', key, 'run', 'node', 'progress', 'waits', 'naming')
merge_no_more(id)
redis.call('DEL', job_outputs_key(id), job_ui_key(id), job_preview_key(id))
local placement = args.placement or f[3]
if args.placement then redis.call('HSET', key, 'placement', placement) end
rq_give_back(id, at)
enqueue(id, f[4], at, { r[2] })
local deadline = redis.call('HGET', key, 'deadline')
if deadline then redis.call('ZADD', deadlines_key, deadline, id) end
publish_status(id, 'queued', nil, nil)
if f[5] then flight_status(f[5], 'queued', nil, at) end
wake_for(id, placement)
return { 'queued' }
