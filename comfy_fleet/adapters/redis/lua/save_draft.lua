-- Store an owner's draft, in place of an earlier one; those saved longest ago make room.
-- args: owner, name, editor_name, base ('': the draft's before, or the version in production), job, most,
-- most_bytes (of all the owner's drafts, compressed).
-- ARGV: content, ui or ''.
-- Returns {'schema', layout} | {'ok', at, base} | {'named', another name in the editor}
local other = other_schema()
if other then return other end
local owner, name = args.owner, args.name
local key, list = draft_key(owner, name), drafts_key(owner)
local before = redis.call('HMGET', key, 'editor_name', 'base')
local published = redis.call('HGET', workflow_key(name), 'editor_name')
local function other_than_mine(known) return known and known ~= '' and args.editor_name ~= '' and known ~= args.editor_name end
if other_than_mine(before[1]) and has_graph(owner, before[1]) then return { 'named', before[1] } end
if other_than_mine(published) and name_taken(owner, name, published) then return { 'named', published } end
local base = args.base
if base == '' then base = before[2] or labeled(name, 'production') end
local at = num(now())
redis.call('DEL', key)
redis.call('HSET', key, 'editor_name', args.editor_name ~= '' and args.editor_name or before[1] or '', 'base', base,
  'job', args.job, 'at', at, 'content', ARGV[2], 'ui', ARGV[3])
redis.call('ZADD', list, at, name)
local count, bytes = 1, #ARGV[2] + #ARGV[3]
for _, other_name in ipairs(redis.call('ZREVRANGE', list, 0, -1)) do
  if other_name ~= name then
    local its = draft_key(owner, other_name)
    count, bytes = count + 1, bytes + redis.call('HSTRLEN', its, 'content') + redis.call('HSTRLEN', its, 'ui')
    if count > args.most or bytes > args.most_bytes then
      redis.call('DEL', its)
      redis.call('ZREM', list, other_name)
    end
  end
end
return { 'ok', at, base }
