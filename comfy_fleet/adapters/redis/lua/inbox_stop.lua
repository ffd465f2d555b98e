-- RQ's command to stop a job.  args: id (in RQ).  Returns the job that is to be canceled; '' if there is none.
if not inbox_id(args.id) then return '' end
local link = fields(inbox_job_key(args.id), 'job', 'state')
if not link[1] or link[2] ~= 'live' then return '' end
redis.call('HSET', inbox_job_key(args.id), 'stopped', '1')
return link[1]
