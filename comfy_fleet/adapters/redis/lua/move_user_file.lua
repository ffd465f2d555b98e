-- Give a person's file or folder another path.  args: owner, source, name (the last part of it), dest, folders (those
-- that the new path goes through), version (a new one), absent (it must replace none), most_files, most_path (bytes),
-- graphs (the folder of the editor's graphs, with a slash), most_words, words_kept_s.
-- Leaves word of the move, in the same step, for who lets drafts follow.
-- Returns {'ok', path, record} of a file | {'ok', path} of a folder | {'none'} | {'exists'} | {'inside'}
-- | {'file', what is in a folder's place} | {'files', how many there are} | {'long', path}.
local owner, dest = args.owner, args.dest
local words = user_moves_key(owner)

local function among_graphs(path) return string.sub(path .. '/', 1, #args.graphs) == args.graphs end

local function leave_word(folder, new)
  redis.call('RPUSH', words, '{"id":' .. cjson.encode(args.version) .. ',"source":' .. cjson.encode(args.source)
    .. ',"dest":' .. cjson.encode(dest) .. ',"folder":' .. tostring(folder) .. ',"at":' .. num(now())
    .. ',"new":' .. cjson.encode(new) .. '}')
  redis.call('LTRIM', words, -args.most_words, -1)
  redis.call('EXPIRE', words, args.words_kept_s)
end

local record, text = user_file(owner, args.source)
local has_folder = is_folder(owner, args.source)
if not record and not has_folder then
  local moved, moved_text = user_file(owner, dest)
  if moved and moved.version == args.version then return { 'ok', dest, moved_text } end  -- by the call before this one
  for _, word in ipairs(redis.call('LRANGE', words, 0, -1)) do
    local readable, told = pcall(cjson.decode, word)
    if readable and type(told) == 'table' and told.id == args.version then return { 'ok', told.dest } end
  end
  return { 'none' }
end
if is_folder(owner, dest) then
  if args.absent then return { 'exists' } end
  if has_folder and dest == args.source then return { 'inside' } end
  args.folders[#args.folders + 1] = dest
  dest = dest .. '/' .. args.name
  if is_folder(owner, dest) or (redis.call('HEXISTS', user_files_key(owner), dest) == 1 and dest ~= args.source) then
    return { 'exists' }
  end
end
local old = user_file(owner, dest)
if old and (args.absent or has_folder) then return { 'exists' } end
if record and dest == args.source then return { 'ok', dest, text } end
if #dest > args.most_path then return { 'long', dest } end
local fresh, blocking = missing_folders(owner, args.folders)
if blocking then return { 'file', blocking } end
local there = redis.call('HLEN', user_files_key(owner))
if fresh > 0 and there + fresh > args.most_files then return { 'files', tostring(there) } end

local files = user_files_key(owner)
if record then
  if old then drop_user_file(owner, dest, old) end
  redis.call('HDEL', files, args.source)
  local content = user_content_key(owner, record.version)
  if redis.call('EXISTS', content) == 1 then redis.call('RENAME', content, user_content_key(owner, args.version)) end
  make_folders(owner, args.folders)
  if among_graphs(args.source) or among_graphs(dest) then leave_word(false, { dest }) end
  return { 'ok', dest, write_user_file(owner, dest, record.size, record.created, record.modified, args.version) }
end

local from = args.source .. '/'
if string.sub(dest .. '/', 1, #from) == from then return { 'inside' } end
local moving, new = {}, {}
local come = among_graphs(dest) and not among_graphs(args.source)
for _, name in ipairs(redis.call('HKEYS', files)) do
  if string.sub(name, 1, #from) == from then
    local to = dest .. '/' .. string.sub(name, #from + 1)
    if #to > args.most_path + 1 then return { 'long', to } end
    moving[#moving + 1] = { name, to }
    local graph = string.sub(to, -5) == '.json' and not string.find(to, '/.', 1, true)
    if come and graph and #new < args.most_words then new[#new + 1] = to end
  end
end
make_folders(owner, args.folders)
for _, names in ipairs(moving) do
  redis.call('HSET', files, names[2], redis.call('HGET', files, names[1]))
  redis.call('HDEL', files, names[1])
end
leave_word(true, new)
return { 'ok', dest }
