-- Tell RQ of a job's end, and enqueue what waited for it: dependents, and a callback for its client's workers.
-- args: id, job, checked (bool: it was only checked, and is no job), status (finished, failed, stopped or canceled), ttl (seconds for which RQ keeps it; negative: for ever),
--       callback (nil, or {id, queue, description, timeout}).
-- ARGV: the return value or the exception's text as RQ keeps it, or ''; what RQ calls for the callback, or ''.
-- Returns 1; 0 if the entry is another job's, or none, now; or if it has become a job, and was only checked.
local id = args.id
local link = fields(inbox_job_key(id), 'job', 'running', 'created', 'state')
if link[1] ~= args.job or (link[4] == 'taken') ~= args.checked then return 0 end
inbox_drop(id)
if link[2] then inbox_left(id, link[2]) end
if not inbox_same(id, link[3]) then return 1 end
local at = now()
local KINDS = { finished = { rq_inbox_finished_key, 1 }, failed = { rq_inbox_failed_key, 2 }, stopped = { rq_inbox_failed_key, 2 },
  canceled = { rq_inbox_canceled_key, 3 } }
local registry, kind = unpack(KINDS[args.status])
redis.call('HSET', rq_job_key(id), 'status', args.status, 'ended_at', iso(at), 'last_heartbeat', iso(at))
redis.pcall('LREM', rq_inbox_key, 0, id)
local entry = { 'XADD', cleared(rq_results_key(id), 'stream'), 'MAXLEN', 10, '*', 'type', kind }
if ARGV[2] ~= '' then
  entry[#entry + 1] = args.status == 'finished' and 'return_value' or 'exc_string'
  entry[#entry + 1] = ARGV[2]
end
redis.pcall(unpack(entry))  -- others may have used up a stream's ids
redis.call('ZADD', cleared(registry, 'zset'), args.ttl < 0 and '+inf' or num(at + args.ttl), id)
if args.status == 'finished' or args.status == 'failed' then inbox_free(id, at) end
local call = args.callback
if call then
  redis.call('HSET', cleared(rq_job_key(call.id), 'hash'), 'created_at', iso(at), 'data', ARGV[3], 'description', call.description,
    'origin', call.queue, 'timeout', call.timeout, 'started_at', '', 'ended_at', '', 'last_heartbeat', '', 'worker_name', '',
    'success_callback_name', '', 'failure_callback_name', '', 'stopped_callback_name', '')
  inbox_enqueue(call.id, call.queue, false, at)
end
if args.ttl == 0 then
  redis.call('ZREM', registry, id)
  redis.call('DEL', rq_job_key(id), rq_results_key(id), rq_dependents_key(id), rq_dependencies_key(id))
elseif args.ttl > 0 then
  for _, key in ipairs({ rq_job_key(id), rq_results_key(id), rq_dependents_key(id), rq_dependencies_key(id) }) do redis.call('EXPIRE', key, args.ttl) end
else
  redis.call('PERSIST', rq_job_key(id))
end
return 1
