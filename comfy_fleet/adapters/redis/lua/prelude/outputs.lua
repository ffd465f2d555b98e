-- Outputs of jobs.

-- Write the record of an output's bytes; returns its id and its path.
-- If the job has the same bytes under the same name, that is the file; under another name, its bytes are used.
local function add_file(r)
  local outputs = asset_outputs_key(r.job_id)
  local there = redis.call('HGET', outputs, r.hash .. '\0' .. r.file_path)
  local record = there and asset_of(there)
  if record and there ~= r.id then return there, record.path end
  for _, field in ipairs(redis.call('HKEYS', outputs)) do
    if string.sub(field, 1, #r.hash) == r.hash then
      local twin = asset_of(redis.call('HGET', outputs, field))
      if twin then r.path = twin.path break end
    end
  end
  add_asset(r)
  return r.id, r.path
end

-- Commit an output to its job, and tell who follows it; returns id and path of its asset.
-- made: {record (of its asset), field (its place), data (as JSON), path (of a saved file, as its owner sees it)}.
local function commit_output(job, run, made)
  local r, data = made.record, made.data
  local id, path = add_file(r)
  if id ~= r.id then data = string.gsub(data, string.gsub(r.id, '%-', '%%-'), id) end
  -- Else it was committed before: an adopted run fetches its outputs again.
  if redis.call('HSETNX', cleared(job_outputs_key(job), 'hash'), made.field, data) == 1 then
    if made.path then
      redis.call('HSET', cleared(saved_files_key(r.owner), 'hash'), made.path, id)
      list_saved(r.owner, made.path)
    end
    publish(job, 'output', run, data)
  end
  return id, path
end
