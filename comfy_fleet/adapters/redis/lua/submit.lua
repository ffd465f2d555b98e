-- Write and enqueue a job; all or nothing.
-- ARGV: id, owner, graph hash, graph, depth limit, ageing, priority, placement, expires_in, seconds to the deadline or '',
--       secret or '', RQ data, RQ description, idempotency key or '', fingerprint, replay 0/1, assets,
--       then field, value ... of the record
-- Returns {'schema', layout} | {'ok', created, place in the queue} | {'again'} | {'full', depth} | {'used', job} | {'replay', job}
local other = other_schema()
if other then return other end
local id, owner, hash, graph = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local idem = ARGV[14]
if idem ~= '' then
  local seen = redis.call('GET', 'fleet:idem:' .. idem)
  if seen then
    local job, print = string.match(seen, '^(%S+) (%S*)$')
    if job == id then return { 'again' } end  -- our own write; the client library asked twice
    return { (ARGV[16] == '1' and print == ARGV[15]) and 'replay' or 'used', job }
  end
end
if redis.call('EXISTS', jobkey(id)) == 1 then return { 'again' } end
local depth = redis.call('LLEN', RQ_QUEUE)
if depth >= tonumber(ARGV[5]) then return { 'full', tostring(depth) } end

local at = now()
local record = { 'HSET', jobkey(id), 'owner', owner, 'status', 'queued', 'created', num(at), 'graph', hash,
  'priority', ARGV[7], 'placement', ARGV[8], 'expires_in', ARGV[9], 'expires', num(at + tonumber(ARGV[9])),
  'attempt', 0, 'cancel', 0, 'assets', ARGV[17] }
for i = 18, #ARGV do record[#record + 1] = ARGV[i] end
local rank = num(at - tonumber(ARGV[7]) * tonumber(ARGV[6]))
record[#record + 1] = 'rank'
record[#record + 1] = rank
if ARGV[10] ~= '' then
  local deadline = num(at + tonumber(ARGV[10]))
  record[#record + 1] = 'deadline'
  record[#record + 1] = deadline
  redis.call('ZADD', 'fleet:deadlines', deadline, id)
end
redis.call(unpack(record))
redis.call('SET', 'fleet:graph:' .. hash, graph, 'NX')
redis.call('HINCRBY', 'fleet:graphs', hash, 1)
if ARGV[11] ~= '' then
  redis.call('SET', jobkey(id) .. ':secret', ARGV[11])
  redis.call('HSET', jobkey(id), 'has_secret', 1)
end
for asset in string.gmatch(ARGV[17], '%S+') do redis.call('SADD', 'fleet:asset:' .. asset .. ':jobs', id) end
redis.call('ZADD', 'fleet:jobs', num(at), id)
redis.call('ZADD', 'fleet:jobs:' .. owner, num(at), id)
if idem ~= '' then redis.call('SET', 'fleet:idem:' .. idem, id .. ' ' .. ARGV[15], 'EX', 86400) end

redis.call('HSET', 'rq:job:' .. id, 'created_at', iso(at), 'enqueued_at', iso(at), 'status', 'queued',
  'data', ARGV[12], 'description', ARGV[13], 'origin', QUEUE, 'timeout', -1, 'started_at', '', 'ended_at', '',
  'last_heartbeat', '', 'worker_name', '', 'success_callback_name', '', 'failure_callback_name', '')
redis.call('SADD', 'rq:queues', RQ_QUEUE)
enqueue(id, ARGV[8], rank, false)
redis.call('PUBLISH', 'fleet:wake', 'job ' .. ARGV[8])
return { 'ok', num(at), place_of(id, ARGV[8]) }
