-- The file that an owner's job saved under the first of these names that is taken.
-- args: owner, paths.  Returns its record's fields and values, or {} if there is none.
for _, path in ipairs(args.paths) do
  local id = redis.pcall('HGET', saved_files_key(args.owner), path)
  if type(id) == 'string' then
    local record = redis.pcall('HGETALL', asset_key(id))
    return record.err and {} or record
  end
end
return {}
