-- What a list shows of jobs: some fields of their records, and how many outputs they have.
-- ARGV: most bytes of an error, how many fields, the fields, then job ids; the first field is the error
-- Returns for each job {how many outputs, value ...}, or {} if there is no such record.
local most, count, out = tonumber(ARGV[1]), tonumber(ARGV[2]), {}
for i = 3 + count, #ARGV do
  local key = jobkey(ARGV[i])
  if redis.call('TYPE', key).ok ~= 'hash' then
    out[#out + 1] = {}
  else
    local f = redis.call('HMGET', key, unpack(ARGV, 3, 2 + count))
    if f[1] and #f[1] > most then
      local e = decoded(f[1])
      local message = type(e.message) == 'string' and e.message or ''
      f[1] = cjson.encode({ code = e.code or 'internal_error', message = #message > most and '(too long)' or message,
        node_id = e.node_id, class_type = e.class_type })
    end
    local outputs = redis.pcall('HLEN', key .. ':outputs')
    table.insert(f, 1, type(outputs) == 'number' and outputs or 0)
    out[#out + 1] = f
  end
end
return out
