-- Give the jobs on a node back to the queue: their dispatchers take them off it.  args: node.
-- Returns the runs concerned; those that only fetch outputs go on.
local asked = {}
for _, run in ipairs(redis.call('SMEMBERS', node_runs_key(args.node))) do
  local phase = fields(run_key(run), 'phase')[1]
  if phase and phase ~= 'left' then
    redis.call('HSET', run_key(run), 'release', 1)
    redis.call('PUBLISH', wake_key, 'release ' .. run)
    asked[#asked + 1] = run
  end
end
return asked
