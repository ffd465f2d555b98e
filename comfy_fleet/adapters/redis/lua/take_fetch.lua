-- Take a URL whose turn it is, for some seconds.  args: token, lease_s, each (most of one owner's at the same time).
-- Returns {} | {FETCH, owner, url, tries, asset that it gave the last time or '', its ETag, its Last-Modified}.
local MOST_OWNERS, MOST_OF_ONE = 64, 16  -- that one call looks at
local at = now()
for _, owner in ipairs(redis.call('ZRANGE', fetch_owners_key, 0, MOST_OWNERS - 1)) do
  local due, busy = fetch_due_key(owner), fetch_busy_key(owner)
  if redis.call('ZCOUNT', busy, num(at), '+inf') < args.each then
    for _, fetch in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', num(at), 'LIMIT', 0, MOST_OF_ONE)) do
      local f = fields(fetch_key(fetch), 'owner', 'url', 'tries')
      if f[1] == owner and f[2] and fetch_wanted(fetch) then
        local till = num(at + args.lease_s)
        redis.call('HSET', fetch_key(fetch), 'token', args.token)
        redis.call('ZADD', due, till, fetch)
        redis.call('ZADD', busy, till, fetch)
        redis.call('ZADD', fetch_owners_key, num(at), owner)
        local had = fields(fetched_key(fetch), 'asset', 'etag', 'modified')
        if not had[1] or redis.call('HGET', asset_key(had[1]), 'owner') ~= owner then had = {} end
        return { fetch, owner, f[2], f[3] or '0', had[1] or '', had[2] or '', had[3] or '' }
      end
      drop_fetch(fetch, owner)
    end
  end
  if redis.call('EXISTS', due) == 0 then redis.call('ZREM', fetch_owners_key, owner) end
end
return {}
