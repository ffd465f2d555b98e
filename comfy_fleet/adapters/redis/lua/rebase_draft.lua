-- Say that an owner's draft is based on another version, unless it was saved again since.
-- args: owner, name, base, at (Unix seconds).  Returns {'schema', layout} | {'ok', 1 or 0}
local other = other_schema()
if other then return other end
local key = draft_key(args.owner, args.name)
local at = redis.call('HGET', key, 'at')
if not at or tonumber(at) ~= args.at then return { 'ok', 0 } end
redis.call('HSET', key, 'base', args.base)
return { 'ok', 1 }
