-- The names of an owner's uploads in one of ComfyUI's folders, the latest first.
-- args: owner, folder, first (place in the list), count.  Returns {whether there may be more, name, when, name, when ...}
local listing = asset_uploads_key(args.owner, args.folder)
local all = redis.call('ZREVRANGE', listing, args.first, args.first + args.count - 1, 'WITHSCORES')
local found = { #all == 2 * args.count and 1 or 0 }
for i = 1, #all, 2 do
  if redis.call('EXISTS', asset_names_key(args.owner, all[i])) == 1 then
    found[#found + 1] = all[i]
    found[#found + 1] = all[i + 1]
  else
    redis.call('ZREM', listing, all[i])  -- its last record was removed by an earlier version
  end
end
return found
