-- Give a run's job back to its place in the queue, or end it when its attempts are used up.
-- ARGV: run, token, counts 0/1, new placement or '', error as JSON, RQ result,
--       nodes to keep from the cache, one a line, last progress as JSON or '', why in short as JSON,
--       what its nodes handed over as JSON or ''; kept if the job ends here
-- Returns the job's state, or '' if the lease is gone.
local run, placement = ARGV[1], ARGV[4]
if not owned(run, ARGV[2]) then return '' end
local r = redis.call('HMGET', 'fleet:run:' .. run, 'job', 'node', 'since')
local id = r[1]
local key = jobkey(id)
local f = redis.call('HMGET', key, 'cancel', 'max_attempts', 'placement', 'rank')
local attempt = redis.call('HINCRBY', key, 'attempt', tonumber(ARGV[3]))
local at = now()
note_attempt(run, id, r[2], r[3], ARGV[9], ARGV[3] == '1', at)
drop_run(run, id, r[2])
if f[1] == '1' then
  keep_ui(id, ARGV[10])
  end_job(id, 'canceled', '', '', at)
  return 'canceled'
end
if ARGV[3] == '1' and attempt >= tonumber(f[2]) then
  if ARGV[8] ~= '' then redis.call('HSET', key, 'progress', ARGV[8]) end
  keep_ui(id, ARGV[10])
  end_job(id, 'failed', ARGV[5], ARGV[6], at)
  return 'failed'
end
note_error(r[2], id, ARGV[5], at)
redis.call('HSET', key, 'status', 'queued', 'last_error', ARGV[5], 'bust', ARGV[7])
redis.call('HDEL', key, 'run', 'node', 'progress', 'waits')
redis.call('DEL', key .. ':outputs', key .. ':ui', key .. ':preview')
if placement == '' then placement = f[3] else redis.call('HSET', key, 'placement', placement) end
redis.call('HSET', rqkey(id), 'status', 'queued', 'enqueued_at', iso(at), 'worker_name', '')
enqueue(id, placement, f[4], true)
local deadline = redis.call('HGET', key, 'deadline')
if deadline then redis.call('ZADD', 'fleet:deadlines', deadline, id) end
publish_status(id, 'queued', nil, nil)
redis.call('PUBLISH', 'fleet:wake', 'job ' .. placement)
return 'queued'
