-- Tell of time as a process has measured it, so that a step of the server's clock changes no time of the fleet's.
-- args: was (the fleet's time that the process heard last), passed and most (seconds since then by its own clock: since it had the
--       answer, and since it asked); all nil if it has heard none; step (that it measured a moment ago: what is measured twice was
--       no delay); alone (bool: nobody else has told since it asked before).
-- Returns {the fleet's time, or '' while it is not known, a step that is to be measured again or ''}.
local OFF_S = 10  -- if nobody has told for so long, the fleet was off, or the server's clock was changed

local raw, shift, seen = server_times()
local step
if args.was then
  local since = raw + shift - args.was
  step = math.max(0, since - args.most) + math.min(0, since - args.passed)
  -- Somebody has told after the moment at which the server's clock would have been changed: it is this process whose clock stood
  -- still, as that of a machine does that was suspended.  It knows no more than one that starts.
  if seen and raw - seen < step - 0.5 then step = nil end
end
if step then
  if math.abs(step) > STEP_S then
    if not args.step or math.abs(step - args.step) > 1 then return { '', num(step) } end
    shift = shift - step
    redis.call('HSET', clock_key, 'shift', num(shift))
    -- Marks by which processes take turns would last for as long as the step.
    redis.call('DEL', queued_tended_key, flights_tended_key, lists_mended_key, model_sizes_asked_key)
  end
elseif seen and (raw < seen - 0.1 or raw > seen + OFF_S) then
  if not args.alone then return { '', '' } end
  if raw < seen then shift = shift + seen - raw end
end
-- Back to the server's own time, so slowly that no time of a job's is wrong by more than a thousandth.
local back = math.min(math.abs(shift), math.min(1, math.max(0, raw - (seen or raw))) / 1000)
redis.call('HSET', cleared(clock_key, 'hash'), 'seen', num(raw), 'shift', num(shift < 0 and shift + back or shift - back))
return { num(now()), '' }
