-- Give the jobs on a node back to the queue: their dispatchers take them off it.
-- ARGV: node.  Returns the runs that are asked for; those that only fetch outputs go on.
local asked = {}
for _, run in ipairs(redis.call('SMEMBERS', 'fleet:node:' .. ARGV[1] .. ':runs')) do
  local phase = fields('fleet:run:' .. run, 'phase')[1]
  if phase and phase ~= 'left' then
    redis.call('HSET', 'fleet:run:' .. run, 'release', 1)
    redis.call('PUBLISH', 'fleet:wake', 'release ' .. run)
    asked[#asked + 1] = run
  end
end
return asked
