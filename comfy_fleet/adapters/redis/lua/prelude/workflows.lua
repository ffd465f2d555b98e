-- Stored workflows: what their labels name, and their history.

-- What a label names now; '' for nothing.
local function labeled(name, label)
  if label == 'production' then return redis.call('HGET', workflows_key, name) or '' end
  return redis.call('HGET', workflow_key(name), 'label ' .. label) or ''
end

-- The versions that a label names, or that begin with these digits: none, one, or several.
local function versions_of(name, label, digits)
  if digits == '' then
    local version = labeled(name, label)
    return version == '' and {} or { version }
  end
  local found = {}
  for _, version in ipairs(redis.call('ZRANGE', workflow_versions_key(name), 0, -1)) do
    if string.sub(version, 8, 7 + #digits) == digits then found[#found + 1] = version end
  end
  return found
end

-- Make a label name a version, and note that as what happened.
local function set_label(name, label, version, entry, most)
  local key = workflow_key(name)
  if label == 'production' then
    redis.call('HSET', workflows_key, name, version)
    redis.call('ZADD', workflow_versions_key(name), entry.at, version)  -- versions that were in use stay longer
  else
    redis.call('HSET', key, 'label ' .. label, version)
  end
  redis.call('HSET', key, 'by ' .. label, entry.author, 'at ' .. label, entry.at)
  redis.call('LPUSH', workflow_history_key(name), cjson.encode(entry))
  redis.call('LTRIM', workflow_history_key(name), 0, most - 1)
end

-- The latest thing that happened to a workflow if it is this very call, made again because its answer was lost.
local function own_entry(name, id)
  local latest = redis.call('LINDEX', workflow_history_key(name), 0)
  local entry = latest and cjson.decode(latest)
  return entry and entry.id == id and entry or nil
end

-- Whether a person has a graph of this name in the editor.
local function has_graph(owner, editor_name)
  local files, path = user_files_key(owner), 'workflows/' .. editor_name
  return redis.call('HEXISTS', files, path .. '.json') == 1 or redis.call('HEXISTS', files, path .. '.app.json') == 1
end

-- Whether a name in the editor is none of a person's own that their file had before: it is another file's, or others'.
local function name_taken(owner, name, editor_name)
  if has_graph(owner, editor_name) then return true end
  for _, version in ipairs(redis.call('ZRANGE', workflow_versions_key(name), 0, -1)) do
    if redis.call('HGET', workflow_version_key(name, version), 'author') == owner then return false end
  end
  return true
end

-- Who removed a workflow, and when; both '' if nobody is known to have.
local function removal(name)
  local text = redis.call('HGET', workflows_removed_key, name)
  local readable, word = pcall(cjson.decode, text or '')
  if not readable or type(word) ~= 'table' then return '', '' end
  return word.author or '', word.at or ''
end

-- Leave word of who removed a workflow; the oldest words make room.
local function note_removal(name, word, most)
  redis.call('HSET', workflows_removed_key, name, cjson.encode(word))
  if redis.call('HLEN', workflows_removed_key) <= most then return end
  local oldest, oldest_at
  for _, other_name in ipairs(redis.call('HKEYS', workflows_removed_key)) do
    local _, at = removal(other_name)
    at = tonumber(at) or 0
    if not oldest or at < oldest_at then oldest, oldest_at = other_name, at end
  end
  redis.call('HDEL', workflows_removed_key, oldest)
end
