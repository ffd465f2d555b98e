-- A process is through with a URL.  args: fetch, token, and one of
--   again {in_s, counts (bool)}: it will be taken again
--   asset {id, type, size}, etag, modified, fresh_s, keep_s: what it gave
--   error {code, message, details}: it gave nothing
-- and most (jobs of one call).  ARGV: RQ's text of an error.
-- Returns {'lost'} | {'gone': the asset is no more} | {'ok' or 'more': call again, facts for observers about each job that failed,
-- each followed by its error as JSON}.
local fetch = args.fetch
local f = fields(fetch_key(fetch), 'token', 'owner', 'tries')
if f[1] ~= args.token then return { 'lost' } end
local at, owner = now(), f[2]
if args.again then
  redis.call('HDEL', fetch_key(fetch), 'token')
  if args.again.counts then redis.call('HSET', fetch_key(fetch), 'tries', (tonumber(f[3] or '') or 0) + 1) end
  redis.call('ZADD', fetch_due_key(owner), num(at + args.again.in_s), fetch)
  redis.call('ZREM', fetch_busy_key(owner), fetch)
  return { 'ok' }
end
local asset = args.asset
if asset then
  if redis.call('HGET', asset_key(asset.id), 'owner') ~= owner then return { 'gone' } end
  redis.call('HSET', fetched_key(fetch), 'asset', asset.id, 'etag', args.etag, 'modified', args.modified)
  redis.call('EXPIRE', fetched_key(fetch), math.ceil(args.keep_s))
  redis.call('SET', fetched_fresh_key(fetch), asset.id, 'PX', math.ceil(args.fresh_s * 1000))
end
local ended = {}
local function fail(id, input, err)
  ended[#ended + 1] = fail_fetch(id, input, err, ARGV[2], at)
  ended[#ended + 1] = fields(job_key(id), 'error')[1]
end
for _, id in ipairs(redis.call('SRANDMEMBER', fetch_jobs_key(fetch), args.most)) do
  local files = awaited_files(id)
  local mine = files and files[fetch]
  if mine then
    files[fetch] = nil
    local misfit, why
    for _, input in ipairs(asset and mine.inputs or {}) do
      why = fetch_misfit(input, asset)
      if why then misfit = input break end
    end
    if not asset then
      fail(id, mine.inputs[1], args.error)
    elseif misfit then
      fail(id, misfit, { code = args.code, message = mine.shown .. ' is of no use: ' .. why, details = { url = mine.shown } })
    else
      give_file(id, mine.inputs, asset, files, at)
    end
  end
  redis.call('SREM', fetch_jobs_key(fetch), id)
end
if redis.call('EXISTS', fetch_jobs_key(fetch)) == 1 then return { 'more', unpack(ended) } end
drop_fetch(fetch, owner)
return { 'ok', unpack(ended) }
