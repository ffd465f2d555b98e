-- Write a live job's progress into what its client notes of it in RQ, unless the client has just changed that.
-- args: id, job.  ARGV: its meta as it was read, as it is to be, and the progress that this has.  Returns 1 if it was written.
local id = args.id
if fields(inbox_job_key(id), 'job')[1] ~= args.job or not inbox_recorded(id) then return 0 end
if inbox_value(id, 'meta', 65536) ~= ARGV[2] then return 0 end
redis.call('HSET', rq_job_key(id), 'meta', ARGV[3])
redis.call('HSET', inbox_job_key(id), 'progress', ARGV[4])
return 1
