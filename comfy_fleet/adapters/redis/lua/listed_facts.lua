-- How long jobs ran, for orders and filters that no list is kept for.
-- args: ids, workflow (only those of this workflow of the editor's).
-- Returns {id, seconds ...}; 0 seconds for one that has not run to an end.
local out = {}
for _, id in ipairs(args.ids) do
  local f = fields(job_key(id), 'workflow_id', 'started', 'completed')
  if not args.workflow or f[1] == args.workflow then
    local started, completed = tonumber(f[2] or ''), tonumber(f[3] or '')
    out[#out + 1] = id
    out[#out + 1] = started and completed and num(completed - started) or '0'
  end
end
return out
