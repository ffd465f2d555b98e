-- End a run and its job.
-- args: run, token, status, seconds (that it took), share (what a new run counts in the node's mean speed), speed
--       (logarithm of this run's), models (used; MOST_MODELS are remembered), most_models, ran_s (what the node took), warm
--       (whether anything came from its cache), reused (whether most of it did), reason {code, message}, outputs (that are not
--       committed yet: see outputs.lua), times (where the run's time went, as text: see run_times.py).
-- ARGV: error as JSON or '', RQ's result, last progress as JSON or '', what its nodes handed over as JSON or ''.
-- Returns {the state that the job ended in, facts for observers about each follower that ended with it ...}, or {} if the lease is gone.
local run, status = args.run, args.status
if not owned(run, args.token) then return {} end
despite_full()
local r = redis.call('HMGET', run_key(run), 'job', 'node', 'since')
local f = redis.call('HMGET', job_key(r[1]), 'cancel', 'profile', 'editor', 'run_s', 'estimate')
if f[1] == '1' then status = 'canceled' end
local at, counted = now(), status == 'failed'
for _, made in ipairs(args.outputs or {}) do
  made.record.job_id = r[1]  -- the run may have been handed over
  commit_output(r[1], run, made)
end
note_attempt(run, r[1], r[2], r[3], args.reason, counted, at, args.times)
if counted then redis.call('HINCRBY', job_key(r[1]), 'attempt', 1) end
sched_left(run, at)
-- What came from its cache says nothing of the node's times; a loader's result comes from there in every run that loads nothing.
if args.status == 'succeeded' and args.seconds and not args.reused then sched_learn(run, f[2] or 'graph') end
if status == 'succeeded' and args.seconds then  -- one that was waited for through a take-over tells nothing
  local had = f[4] and sched_of_run(run)
  if had then sched_note_error('run', (at - had.since) / math.max(had.load_s + sched_number(f[4], 0) / had.speed, 1e-3)) end
  local since, seconds, kind = string.match(f[5] or '', '^(%S+) (%S+) (%w+)$')
  if kind then sched_note_error(kind, (at - sched_number(since, at)) / math.max(sched_number(seconds, 0), 1e-3)) end
end
drop_run(run, r[1], r[2])
keep_ui(r[1], ARGV[5])
if f[3] and args.ran_s then note_results(f[3], r[2], args.ran_s, args.warm) end
if args.status == 'succeeded' and redis.call('HEXISTS', nodes_key, r[2]) == 1 then
  -- A run that had to load a model says nothing about the GPU's speed.
  local warm = used_models(r[2], args.most_models, args.models)
  if warm and args.speed then
    local node = node_key(r[2])
    local had = redis.call('HMGET', node, 'speed', 'speeds')
    local mean, runs = tonumber(had[1] or 0), tonumber(had[2] or 0) + 1
    mean = mean + math.max(args.share, 1 / runs) * (args.speed - mean)
    redis.call('HSET', node, 'speed', num(mean), 'speeds', runs)
  end
end
local ours = status == args.status
end_job(r[1], status, ARGV[2], ours and ARGV[3] or '', at, ours and ARGV[4] ~= '' and ARGV[4] or nil)
if status == 'succeeded' then keep_result(r[1], at, ended_followers) end
return { status, unpack(ended_followers) }
