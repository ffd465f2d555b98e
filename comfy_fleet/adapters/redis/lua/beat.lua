-- Renew run leases.
-- ARGV: ttl, then run, token ...
-- Returns {lost runs, runs to be canceled, runs to be given back}
local at, ttl = now(), tonumber(ARGV[1])
local lost, cancel, release = {}, {}, {}
for i = 2, #ARGV, 2 do
  local f = fields('fleet:run:' .. ARGV[i], 'token', 'job', 'release')
  if f[1] ~= ARGV[i + 1] then
    lost[#lost + 1] = ARGV[i]
  else
    redis.call('ZADD', 'fleet:runs', num(at + ttl), ARGV[i])
    redis.call('HSET', 'rq:execution:' .. f[2] .. ':' .. ARGV[i], 'last_heartbeat', num(at))
    redis.call('HSET', rqkey(f[2]), 'last_heartbeat', iso(at))
    if f[3] == '1' then release[#release + 1] = ARGV[i] end
    if fields(jobkey(f[2]), 'cancel')[1] == '1' then cancel[#cancel + 1] = ARGV[i] end
  end
end
return { lost, cancel, release }
