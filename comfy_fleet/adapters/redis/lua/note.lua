-- Something happened in a run: keep it for late readers and tell the others.
-- ARGV: run, token, job, kind (progress | preview | output | waits),
--       data as JSON (waits: as text, or ''), output field or ''
-- Returns 1, or 0 if the lease is gone.
local run, id, kind, data = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
if not owned(run, ARGV[2]) then return 0 end
local key = jobkey(id)
if kind == 'waits' then
  if data == '' then redis.call('HDEL', key, 'waits') else redis.call('HSET', key, 'waits', data) end
  return 1  -- the record has it for who asks
elseif kind == 'progress' then
  redis.call('HSET', key, 'progress', data)
elseif kind == 'preview' then
  redis.set_repl(redis.REPL_NONE)  -- worthless after a restart: it would only fill the append-only file
  redis.call('SET', key .. ':preview', data, 'EX', 60)
  redis.set_repl(redis.REPL_ALL)
elseif redis.call('HSETNX', cleared(key .. ':outputs', 'hash'), ARGV[6], data) == 0 then
  return 1  -- committed before: an adopted run fetches its outputs again
end
publish(id, kind, run, data)
return 1
