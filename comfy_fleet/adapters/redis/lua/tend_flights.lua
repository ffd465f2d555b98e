-- Look after equal jobs that share a run.  One process of the fleet does so at a time.
-- args: every_ms (between two turns), goes_on (bool: the caller has the turn).
-- Returns {'schema', layout} | {'ok', facts for observers about each follower that ended ...}.
local other = other_schema()
if other then return other end
if redis.call('EXISTS', flights_key) == 0 then return { 'ok' } end
if args.goes_on then
  redis.call('SET', flights_tended_key, '1', 'PX', args.every_ms)
elseif not redis.call('SET', flights_tended_key, '1', 'NX', 'PX', args.every_ms) then
  return { 'ok' }
end
tend_flights(20, now(), end_job)
return { 'ok', unpack(ended_followers) }
