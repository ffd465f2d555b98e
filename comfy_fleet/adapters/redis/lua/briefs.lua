-- What a list shows of jobs: some fields of their records, and how many outputs they have.
-- args: ids, fields (the first is the error), most (bytes of an error).
-- Returns for each job {how many outputs, value ...}, or {} if there is no such record.
local out = {}
for _, id in ipairs(args.ids) do
  if redis.call('TYPE', job_key(id)).ok ~= 'hash' then
    out[#out + 1] = {}
  else
    local f = redis.call('HMGET', job_key(id), unpack(args.fields))
    if f[1] and #f[1] > args.most then
      local e = decoded(f[1])
      local message = type(e.message) == 'string' and e.message or ''
      f[1] = cjson.encode({ code = e.code or 'internal_error', message = #message > args.most and '(too long)' or message,
        node_id = e.node_id, class_type = e.class_type })
    end
    local outputs = redis.pcall('HLEN', job_outputs_key(id))
    table.insert(f, 1, type(outputs) == 'number' and outputs or 0)
    out[#out + 1] = f
  end
end
return out
