-- Renew run leases.  args: ttl_s, tokens {RUN: token}.
-- Returns {lost runs, runs to be canceled, runs to be given back, runs whose frames somebody listens to}.
despite_full()
local at = now()
failover_pause(at, args.ttl_s)
local lost, cancel, release, heard = {}, {}, {}, {}
for run, token in pairs(args.tokens) do
  local f = fields(run_key(run), 'token', 'job', 'release', 'rq_beat')
  if f[1] ~= token then
    lost[#lost + 1] = run
  else
    redis.call('ZADD', runs_key, num(at + args.ttl_s), run)
    if rq_beat(f[2], run, f[4], at) then redis.call('HSET', run_key(run), 'rq_beat', num(at)) end
    if f[3] == '1' then release[#release + 1] = run end
    if fields(job_key(f[2]), 'cancel')[1] == '1' then cancel[#cancel + 1] = run end
    if listeners(f[2]) > 0 then heard[#heard + 1] = run end
  end
end
return { lost, cancel, release, heard }
