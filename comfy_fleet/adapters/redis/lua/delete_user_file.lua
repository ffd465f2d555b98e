-- Delete a person's file, or a folder that is empty.  args: owner, path.
-- Returns {'ok'} | {'none'} | {'folder'}: it has files or folders.
local files = user_files_key(args.owner)
local record = user_file(args.owner, args.path)
if record then
  drop_user_file(args.owner, args.path, record)
  return { 'ok' }
end
if not is_folder(args.owner, args.path) then
  return { redis.call('HDEL', files, args.path) == 1 and 'ok' or 'none' }
end
local from = args.path .. '/'
for _, name in ipairs(redis.call('HKEYS', files)) do
  if string.sub(name, 1, #from) == from and name ~= from then return { 'folder' } end
end
redis.call('HDEL', files, from)
return { 'ok' }
