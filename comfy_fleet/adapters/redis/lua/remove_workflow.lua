-- Remove a stored workflow with its versions and its history, and leave word of it.
-- args: name, author, most_removed (workflows of which that is kept).
-- Returns {'schema', layout} | {'ok', 1 if it was there}
local other = other_schema()
if other then return other end
local name = args.name
local production = labeled(name, 'production')
if production ~= '' then
  note_removal(name, { author = args.author, at = num(now()), version = production }, args.most_removed)
end
for _, version in ipairs(redis.call('ZRANGE', workflow_versions_key(name), 0, -1)) do
  redis.call('DEL', workflow_version_key(name, version))
end
redis.call('DEL', workflow_key(name), workflow_versions_key(name), workflow_history_key(name))
return { 'ok', redis.call('HDEL', workflows_key, name) }
