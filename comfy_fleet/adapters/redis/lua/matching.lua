-- Which of some jobs a list wants.  args: ids, and what they must have: owners (any of them), states, workflow,
--       labels {label: value}, shown (bool: not deleted from history), kept (bool: exempt from retention).
-- Returns the ids that match.
local states = {}
for _, state in ipairs(args.states or {}) do states[state] = true end
local owners = {}
for _, owner in ipairs(args.owners or {}) do owners[owner] = true end
local found = {}
for _, id in ipairs(args.ids) do
  local f = redis.pcall('HMGET', job_key(id), 'status', 'workflow', 'metadata', 'hidden', 'kept', 'owner')
  local fits = not f.err and f[1] and (not args.states or states[f[1]])
    and (not args.owners or owners[f[6]])
    and (not args.workflow or f[2] == args.workflow)
    and not (args.shown and f[4])
    and (not args.kept or f[5])
  if fits and args.labels then
    local has = decoded(f[3] or '')
    for label, value in pairs(args.labels) do fits = fits and has[label] == value end
  end
  if fits then found[#found + 1] = id end
end
return found
