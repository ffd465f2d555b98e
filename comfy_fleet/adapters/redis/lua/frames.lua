-- Publish frames of a run as its node sent them; nothing of it is stored.
-- args: run, token, job.  ARGV: messages.  Returns {how many listen}, or 0 if the lease is gone.
if not owned(args.run, args.token) then return 0 end
local heard = 0
for i = 2, #ARGV do heard = redis.call('PUBLISH', frames_key(args.job), ARGV[i]) end
return { heard }
