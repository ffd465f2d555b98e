-- Let a person's draft follow its file, which has another name by now; a file that is there again keeps it.
-- args: owner, name, editor_name (before), to (the stored workflow's name), new_name (in the editor).
-- Returns {'schema', layout} | {'ok', 1 if the draft has followed}
local other = other_schema()
if other then return other end
local owner, key, dest = args.owner, draft_key(args.owner, args.name), draft_key(args.owner, args.to)
if redis.call('HGET', key, 'editor_name') ~= args.editor_name or redis.call('HEXISTS', key, 'content') == 0 then
  return { 'ok', 0 }
end
if has_graph(owner, args.editor_name) then return { 'ok', 0 } end
if args.to ~= args.name then
  local there = redis.call('HMGET', dest, 'editor_name', 'base')
  local theirs = there[1] or ''
  if theirs ~= '' and theirs ~= args.new_name and has_graph(owner, theirs) then return { 'ok', 0 } end
  redis.call('RENAME', key, dest)
  redis.call('HSET', dest, 'base', there[2] or labeled(args.to, 'production'))
  redis.call('ZADD', drafts_key(owner), redis.call('HGET', dest, 'at'), args.to)
  redis.call('ZREM', drafts_key(owner), args.name)
end
redis.call('HSET', dest, 'editor_name', args.new_name)
return { 'ok', 1 }
