-- End a run and its job.
-- ARGV: run, token, status, error as JSON or '', RQ result or '', duration or '', what a new run counts in the
--       node's mean speed, logarithm of this run's speed or '', how many models to remember, last progress as
--       JSON or '', why in short as JSON or '', what its nodes handed over as JSON or '', then the models used
-- Returns the state that the job ended in, or '' if the lease is gone.
local run, status = ARGV[1], ARGV[3]
if not owned(run, ARGV[2]) then return '' end
local r = redis.call('HMGET', 'fleet:run:' .. run, 'job', 'node', 'since')
local f = redis.call('HMGET', jobkey(r[1]), 'cancel', 'profile')
if f[1] == '1' then status = 'canceled' end
local at, counted = now(), status == 'failed'
note_attempt(run, r[1], r[2], r[3], ARGV[11], counted, at)
if counted then redis.call('HINCRBY', jobkey(r[1]), 'attempt', 1) end
drop_run(run, r[1], r[2])
keep_ui(r[1], ARGV[12])
if status == 'succeeded' and ARGV[6] ~= '' then
  for _, profile in ipairs({ f[2] or 'graph', '*' }) do
    redis.call('LPUSH', 'fleet:durations:' .. profile, ARGV[6])
    redis.call('LTRIM', 'fleet:durations:' .. profile, 0, 49)
    redis.call('EXPIRE', 'fleet:durations:' .. profile, 2592000)
  end
  redis.call('LPUSH', 'fleet:latest', ARGV[6] .. ' ' .. r[2])
  redis.call('LTRIM', 'fleet:latest', 0, 49)
end
if ARGV[3] == 'succeeded' and redis.call('HEXISTS', 'fleet:nodes', r[2]) == 1 then
  -- A run that had to load a model says nothing about the GPU's speed.
  local warm = used_models(r[2], tonumber(ARGV[9]), { unpack(ARGV, 13) })
  if warm and ARGV[8] ~= '' then
    local node = 'fleet:node:' .. r[2]
    local had = redis.call('HMGET', node, 'speed', 'speeds')
    local mean, runs = tonumber(had[1] or 0), tonumber(had[2] or 0) + 1
    mean = mean + math.max(tonumber(ARGV[7]), 1 / runs) * (tonumber(ARGV[8]) - mean)
    redis.call('HSET', node, 'speed', num(mean), 'speeds', runs)
  end
end
local progress = status == ARGV[3] and ARGV[10] ~= '' and ARGV[10] or nil
end_job(r[1], status, ARGV[4], status == ARGV[3] and ARGV[5] or '', at, progress)
return status
