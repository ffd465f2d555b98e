-- People's files in the editor.

-- A file's record, and its text; nil if there is none, or none that can be read.
local function user_file(owner, path)
  local text = redis.call('HGET', user_files_key(owner), path)
  local readable, record = pcall(cjson.decode, text or '')
  if readable and type(record) == 'table' and record.version then return record, text end
end

local function is_folder(owner, path)
  return redis.call('HEXISTS', user_files_key(owner), path .. '/') == 1
end

-- Return how many of these folders are missing; or the file that is in the place of one.
local function missing_folders(owner, folders)
  local count = 0
  for _, folder in ipairs(folders) do
    if redis.call('HEXISTS', user_files_key(owner), folder) == 1 then return 0, folder end
    if not is_folder(owner, folder) then count = count + 1 end
  end
  return count
end

local function make_folders(owner, folders)
  for _, folder in ipairs(folders) do redis.call('HSET', user_files_key(owner), folder .. '/', '') end
end

-- Write a file's record; returns its text.
local function write_user_file(owner, path, size, created, modified, version)
  local text = '{"size":' .. string.format('%.0f', size) .. ',"created":' .. num(created)
    .. ',"modified":' .. num(modified) .. ',"version":' .. cjson.encode(version) .. '}'
  redis.call('HSET', user_files_key(owner), path, text)
  return text
end

-- Forget a file with its content.
local function drop_user_file(owner, path, record)
  redis.call('HDEL', user_files_key(owner), path)
  redis.call('DEL', user_content_key(owner, record.version))
  redis.call('DECRBY', user_bytes_key(owner), string.format('%.0f', record.size))  -- minus nothing would be "-0"
end
