-- Something happened in a run: store it for late readers and publish it for the others.
-- args: run, token, job, kind (progress | preview | waits).
-- ARGV: data as JSON; of kind waits as text, or ''.  Returns 1, or 0 if the lease is gone.
local id, kind, data = job_of_run(args.run, args.token, args.job), args.kind, ARGV[2]
if not id then return 0 end
local key = job_key(id)
if kind == 'waits' then
  if data == '' then redis.call('HDEL', key, 'waits') else redis.call('HSET', key, 'waits', data) end
  return 1  -- the record has it for who asks
elseif kind == 'progress' then
  redis.call('HSET', key, 'progress', data)
  local flight = fields(key, 'flight')[1]
  if flight then flight_progress(flight, data) end
elseif kind == 'preview' then
  redis.set_repl(redis.REPL_NONE)  -- worthless after a restart: it would only fill the append-only file
  redis.call('SET', job_preview_key(id), data, 'EX', 60)
  redis.set_repl(redis.REPL_ALL)
end
publish(id, kind, args.run, data)
return 1
