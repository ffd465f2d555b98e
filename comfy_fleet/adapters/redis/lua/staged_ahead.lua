-- A file was sent to a node for a job that has not started: from now on runs find it.
-- args: node, asset, folders, keep_s (for how long it stays at least).  Returns 1, or 0 if it is not needed any more and will be deleted.
local node, at, sent = args.node, now(), 'ahead ' .. args.folders
local names, ends, ahead = staged_key(node), staged_ends_key(node), staged_ahead_key(node)
local f = fields(asset_key(args.asset), 'owner', 'hash', 'file_path')
local file = f[1] and staged_file(f)
if redis.call('HEXISTS', names, sent) == 0 then
  -- It may have come after its folder was deleted. The order to do so again must not be taken for the first one.
  redis.call('HSET', names, sent, args.folders)
  redis.call('ZADD', ends, num(at + 60), sent)
  return 0
end
if not file or redis.call('HEXISTS', names, file) == 1 then
  give_up_staged(node, sent, cleaner_of(node), at)
  return 0
end
local size = redis.call('HGET', ahead, sent)
redis.call('HDEL', names, sent)
redis.call('HDEL', ahead, sent)
redis.call('ZREM', ends, sent)
redis.call('HSET', names, file, args.folders)
redis.call('ZADD', ends, num(at + args.keep_s), file)
if size then redis.call('HSET', ahead, file, size) end
return 1
