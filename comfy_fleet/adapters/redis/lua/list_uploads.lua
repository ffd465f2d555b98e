-- The names of an owner's uploads in one of ComfyUI's folders, the latest first.  args: owner, folder, limit.
-- Returns {name, when, name, when ...}
local listing, found = asset_uploads_key(args.owner, args.folder), {}
local all = redis.call('ZREVRANGE', listing, 0, args.limit - 1, 'WITHSCORES')
for i = 1, #all, 2 do
  if redis.call('EXISTS', asset_names_key(args.owner, all[i])) == 1 then
    found[#found + 1] = all[i]
    found[#found + 1] = all[i + 1]
  else
    redis.call('ZREM', listing, all[i])  -- its last record was removed by an earlier version
  end
end
return found
