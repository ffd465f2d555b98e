-- Store an owner's signing secrets, unless somebody else did so meanwhile.  args: owner.  ARGV: the new ones, those before or ''.
-- Returns 1 if they were stored.
if (redis.call('HGET', webhook_secrets_key, args.owner) or '') ~= ARGV[3] then return 0 end
redis.call('HSET', webhook_secrets_key, args.owner, ARGV[2])
return 1
