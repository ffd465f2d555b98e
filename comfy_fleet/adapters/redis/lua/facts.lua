-- Some fields of jobs' records.  args: ids, fields.  Returns for each job their values, or {} if there is no record.
local out = {}
for _, id in ipairs(args.ids) do out[#out + 1] = fields(job_key(id), unpack(args.fields)) end
return out
