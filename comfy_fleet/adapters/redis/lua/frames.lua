-- Publish frames of a run; nothing of it is stored.
-- args: run, token, job, clients (the channel of who follows its client), only (per frame a character: j: for who follows the
--       job, c: for who follows its client, another one: for both).
-- ARGV: messages.  Returns {how many follow the job, and how many its client}, or 0 if the lease is gone.
if not owned(args.run, args.token) then return 0 end
for i = 2, #ARGV do
  local only = args.only:sub(i - 1, i - 1)
  if only ~= 'c' then redis.call('PUBLISH', frames_key(args.job), ARGV[i]) end
  if only ~= 'j' then redis.call('PUBLISH', args.clients, args.job .. ' ' .. ARGV[i]) end
end
local found = redis.call('PUBSUB', 'NUMSUB', frames_key(args.job), args.clients)
return { found[2], found[4] }
