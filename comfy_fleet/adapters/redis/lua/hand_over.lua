-- Let run leases expire now: another dispatcher takes the runs over.  args: tokens {RUN: token}.
despite_full()
local at = now()
for run, token in pairs(args.tokens) do
  if owned(run, token) then redis.call('ZADD', runs_key, num(at), run) end
end
