-- Forget a person's draft whose file was deleted. What it was based on is kept for a while: of a file that is saved in
-- its place, others' versions since then are none that its author has seen.
-- args: owner, name, editor_name, kept_s.  Returns {'schema', layout} | {'ok', 1 if there was such a draft}
local other = other_schema()
if other then return other end
local owner, key = args.owner, draft_key(args.owner, args.name)
local its = redis.call('HMGET', key, 'editor_name', 'base')
if its[1] ~= args.editor_name or has_graph(owner, args.editor_name) then return { 'ok', 0 } end
redis.call('DEL', key)
redis.call('ZREM', drafts_key(owner), args.name)
redis.call('HSET', key, 'base', its[2] or '')
redis.call('EXPIRE', key, args.kept_s)
return { 'ok', 1 }
