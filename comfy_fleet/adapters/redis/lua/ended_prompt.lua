-- The job that its owner's client calls so, with its large parts, if it is over.
-- args: owner, prompt_hash, id (of the job that is meant if no client has chosen this name, or nil).
-- Returns {id, record, outputs, graph, extra data, what its nodes handed over}, or {} if there is none.
local function value(key)
  local found = redis.pcall('GET', key)
  return type(found) == 'string' and found
end
local id = value(prompt_key(args.owner, args.prompt_hash)) or args.id
local f = id and fields(job_key(id), 'owner', 'status') or {}
local list = LIST_OF[f[2] or '']
if f[1] ~= args.owner or list == 'pending' or list == 'in_progress' then return {} end
local outputs = redis.pcall('HGETALL', job_outputs_key(id))
return { id, redis.call('HGETALL', job_key(id)), outputs.err and {} or outputs, graph_of(id),
  value(job_extra_key(id)), value(job_ui_key(id)) }
