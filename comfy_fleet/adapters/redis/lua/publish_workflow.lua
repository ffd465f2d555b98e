-- Add a version of a stored workflow and put it into production; then remove the oldest above the limits.
-- args: name, version, expected ('': the workflow must be new), force (bool), author, note, editor_name, id (drawn for
--       this call), most_workflows, most_versions, most_bytes, most_history.
-- ARGV: content, ui or '', thumbnail or ''.
-- Returns {'schema', layout} | {'ok', at, version before} | {'same', at} | {'changed', production, by, at} |
--         {'named', name in the editor} | {'full'}
local other = other_schema()
if other then return other end
local name, version = args.name, args.version
local key, one = workflow_key(name), workflow_version_key(name, version)
local production = labeled(name, 'production')
local f = redis.call('HMGET', key, 'editor_name', 'by production', 'at production')
local at = num(now())

-- How it looks in the editor, and what it makes, are no part of a version.
local function keep_looks()
  if ARGV[3] ~= '' then redis.call('HSET', one, 'ui', ARGV[3]) end
  if ARGV[4] ~= '' then redis.call('HSET', one, 'thumbnail', ARGV[4]) end
  if args.editor_name ~= '' then redis.call('HSET', key, 'editor_name', args.editor_name) end
end

-- The versions that live jobs name.
local function live_versions()
  local live = {}
  for _, owner in ipairs(redis.call('HKEYS', numbers_key)) do
    for _, id in ipairs(redis.call('ZRANGE', live_key(owner), 0, -1)) do
      local its = fields(job_key(id), 'workflow', 'version')
      if its[1] == name and its[2] then live[its[2]] = true end
    end
  end
  return live
end

local function prune()
  local versions, sizes, bytes = redis.call('ZRANGE', workflow_versions_key(name), 0, -1), {}, 0
  for _, v in ipairs(versions) do
    local its = workflow_version_key(name, v)
    sizes[v] = redis.call('HSTRLEN', its, 'content') + redis.call('HSTRLEN', its, 'ui')
      + redis.call('HSTRLEN', its, 'thumbnail')
    bytes = bytes + sizes[v]
  end
  local count = #versions
  if count <= args.most_versions and bytes <= args.most_bytes then return end
  local needed = live_versions()
  needed[version] = true
  local record = redis.call('HGETALL', key)
  for i = 1, #record, 2 do
    if string.sub(record[i], 1, 6) == 'label ' then needed[record[i + 1]] = true end
  end
  for _, v in ipairs(versions) do
    if count <= args.most_versions and bytes <= args.most_bytes then return end
    if not needed[v] then
      redis.call('DEL', workflow_version_key(name, v))
      redis.call('ZREM', workflow_versions_key(name), v)
      count, bytes = count - 1, bytes - sizes[v]
    end
  end
end

if production ~= '' and args.editor_name ~= '' and f[1] and f[1] ~= args.editor_name
    and name_taken(args.author, name, f[1]) then
  return { 'named', f[1] }
end
if production == version then
  local mine = own_entry(name, args.id)
  if mine then return { 'ok', mine.at, mine.before } end
  keep_looks()
  return { 'same', f[3] or at }
end
if not args.force and production ~= args.expected then
  local by, changed_at = f[2] or '', f[3] or '0'
  if production == '' then by, changed_at = removal(name) end
  return { 'changed', production, by, changed_at == '' and '0' or changed_at }
end
if production == '' and redis.call('HLEN', workflows_key) >= args.most_workflows then return { 'full' } end
if redis.call('EXISTS', one) == 0 then
  redis.call('HSET', one, 'author', args.author, 'at', at, 'note', args.note, 'content', ARGV[2])
end
keep_looks()
set_label(name, 'production', version, { id = args.id, at = at, author = args.author, action = 'published',
  version = version, before = production, label = 'production', note = args.note }, args.most_history)
redis.call('HDEL', workflows_removed_key, name)
prune()
return { 'ok', at, production }
