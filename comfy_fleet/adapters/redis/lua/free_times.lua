-- When nodes that run something are probably free.  args: names.
-- Returns for each the seconds until then, or '' if nobody knows.  One that is late takes as long again.
local at, found = now(), {}
for i, name in ipairs(args.names) do
  local free_at = sched_number(fields(sched_node_key(name), 'free_at')[1], SCHED.IDLE)
  found[i] = free_at > 0 and num(math.abs(free_at - at)) or ''
end
return found
