-- What ComfyUI's queue shows of jobs, and how long the rest is.  args: ids, fields.
-- Returns for each job {bytes of its graph, bytes of its extra data, value ...}.
local function length(key)
  local found = redis.pcall('STRLEN', key)
  return type(found) == 'number' and found or 0
end
local out = {}
for _, id in ipairs(args.ids) do
  local graph = fields(job_key(id), 'graph')[1]
  local f = fields(job_key(id), unpack(args.fields))
  table.insert(f, 1, length(job_extra_key(id)))
  table.insert(f, 1, graph and length(graph_key(graph)) or 0)
  out[#out + 1] = f
end
return out
