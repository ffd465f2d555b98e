-- Write a file of a person's.  args: owner, path, folders (those that the path goes through), version, size, absent (it
-- must replace none), expected (the version that it replaces, '' for none; nil: any), most_bytes, most_files.
-- ARGV[2]: its content, compressed.
-- Returns {'ok', record} | {'exists'} | {'changed'} | {'folder'} | {'file', what is in a folder's place}
-- | {'bytes', how many there would be} | {'files', how many there are}.
local owner, path = args.owner, args.path
local old, text = user_file(owner, path)
if old and old.version == args.version then return { 'ok', text } end  -- the call before this one got through
if is_folder(owner, path) then return { args.absent and 'exists' or 'folder' } end
if old and args.absent then return { 'exists' } end
if args.expected and args.expected ~= (old and old.version or '') then return { 'changed' } end
local fresh, blocking = missing_folders(owner, args.folders)
if blocking then return { 'file', blocking } end
if not old then fresh = fresh + 1 end
local there = redis.call('HLEN', user_files_key(owner))
if fresh > 0 and there + fresh > args.most_files then return { 'files', tostring(there) } end
local more = args.size - (old and old.size or 0)
local bytes = tonumber(redis.call('GET', user_bytes_key(owner)) or 0) + more
if more > 0 and bytes > args.most_bytes then return { 'bytes', string.format('%.0f', bytes) } end

local at = now()
if old then redis.call('DEL', user_content_key(owner, old.version)) end
redis.call('SET', user_content_key(owner, args.version), ARGV[2])
redis.call('INCRBY', user_bytes_key(owner), string.format('%.0f', more))
make_folders(owner, args.folders)
return { 'ok', write_user_file(owner, path, args.size, old and old.created or at, at, args.version) }
