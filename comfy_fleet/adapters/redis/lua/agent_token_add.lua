-- Keep an agent's token.  args: host, id, most (of a host), most_hosts.  ARGV: its record as JSON.
-- Returns 1, or 0 if there are too many.
local key = agent_tokens_key(args.host)
if redis.call('HLEN', key) >= args.most then return 0 end
if redis.call('SISMEMBER', agent_token_hosts_key, args.host) == 0
  and redis.call('SCARD', agent_token_hosts_key) >= args.most_hosts then return 0 end
redis.call('HSET', key, args.id, ARGV[2])
redis.call('SADD', agent_token_hosts_key, args.host)
return 1
