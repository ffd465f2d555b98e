-- Stores changes of tenants, users and keys, unless somebody else has changed them since they were read.
-- args: read, version (the version that was read, and the one to be), tenants, users, keys (NAME -> record as JSON, or false: it
--       goes).  Returns 1, or 0 if they were changed.
if (redis.call('GET', people_version_key) or '') ~= args.read then return 0 end
local kinds = { { args.tenants or {}, tenants_key }, { args.users or {}, users_key }, { args.keys or {}, access_keys_key } }
local adds = false
for _, kind in ipairs(kinds) do
  for _, record in pairs(kind[1]) do adds = adds or record end
end
if not adds then despite_full() end
redis.call('SET', people_version_key, args.version)
for _, kind in ipairs(kinds) do
  for name, record in pairs(kind[1]) do
    if record then redis.call('HSET', kind[2], name, record) else redis.call('HDEL', kind[2], name) end
  end
end
for name in pairs(args.tenants or {}) do bounds_release('tenant:' .. name) end  -- its bound of running jobs may be another one
return 1
