-- Forget an agent's token.  args: host, id.  Returns its record, or nil.
local key = agent_tokens_key(args.host)
local record = redis.call('HGET', key, args.id)
redis.call('HDEL', key, args.id)
if redis.call('EXISTS', key) == 0 then redis.call('SREM', agent_token_hosts_key, args.host) end
return record
