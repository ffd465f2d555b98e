-- Everything about a stored workflow but its versions' content.
-- args: name.  Returns {} if it is not in the store, else {production, record, {version, author, at, note, bytes of
-- content, of ui, of thumbnail} ...}, those last in use first.
local production = labeled(args.name, 'production')
if production == '' then return {} end
local versions = {}
for i, version in ipairs(redis.call('ZREVRANGE', workflow_versions_key(args.name), 0, -1)) do
  local key = workflow_version_key(args.name, version)
  local f = redis.call('HMGET', key, 'author', 'at', 'note')
  versions[i] = { version, f[1] or '', f[2] or '0', f[3] or '', redis.call('HSTRLEN', key, 'content'),
    redis.call('HSTRLEN', key, 'ui'), redis.call('HSTRLEN', key, 'thumbnail') }
end
return { production, redis.call('HGETALL', workflow_key(args.name)), versions }
