-- What is told of a job, and the lists of ComfyUI's interface that it is in.

-- Store what the graph's nodes returned for the user interface, as JSON, replacing the earlier value; '' keeps it.
local function keep_ui(id, ui)
  if ui ~= '' then redis.call('SET', job_ui_key(id), ui) end
end

-- A job's graph, or false.
local function graph_of(id)
  local graph = redis.pcall('GET', graph_key(fields(job_key(id), 'graph')[1] or ''))
  return type(graph) == 'string' and graph
end

local function publish(id, kind, run, data)
  local seq = redis.pcall('HINCRBY', job_key(id), 'seq', 1)
  if type(seq) == 'table' then  -- no number: whoever follows reads the record instead
    seq = 1
    redis.call('HSET', job_key(id), 'seq', seq)
  end
  redis.call('PUBLISH', events_key(id), '{"seq":' .. seq .. ',"type":"' .. kind .. '","run":'
    .. (run and run ~= '' and '"' .. run .. '"' or 'null') .. ',"data":' .. data .. '}')
  return seq
end

-- ComfyUI's words for states, by ours.
local LIST_OF = { queued = 'pending', running = 'in_progress', canceling = 'in_progress', succeeded = 'completed',
  failed = 'failed', expired = 'failed', canceled = 'cancelled' }

-- Take a job out of the lists that ComfyUI's clients ask for.
local function unlist_job(id, owner)
  for _, list in ipairs({ 'pending', 'in_progress', 'completed', 'failed', 'cancelled' }) do
    redis.call('ZREM', listed_key(owner, list), id)
  end
  redis.call('ZREM', history_key(owner), id)
end

local EDITOR_SHOWS = 64  -- entries of the history that ComfyUI's older editor asks for

-- Put a job that has ended on top of its owner's history, whose order is the order of entry.
-- The editor of ComfyUI 0.3 takes from it only what has a number above all that it shows, and at least 0.  So a job
-- whose own number is too low, as others ended before it, gets the next one there.  It is whole, because clients read
-- it into an integer.
local function enter_history(id, owner, ended)
  local key = history_key(owner)
  if redis.call('ZSCORE', key, id) then return end
  local highest = -1
  for i = 0, EDITOR_SHOWS - 1 do
    local entry = redis.call('ZREVRANGE', key, i, i, 'WITHSCORES')
    if not entry[1] then break end
    if i == 0 then ended = math.max(ended, tonumber(entry[2]) + 0.000001) end
    local f = fields(job_key(entry[1]), 'number', 'history_number')
    highest = math.max(highest, tonumber(f[2] or f[1] or '') or -1)
    if f[2] then break end  -- it is above all before it; what other versions listed may be in any order
  end
  local above = math.floor(highest) + math.max(1, highest * 2 ^ -52)  -- a step that a double can hold
  local own = tonumber(fields(job_key(id), 'number')[1] or '') or 0
  redis.call('HSET', job_key(id), 'history_number', string.format('%.17g', math.max(math.ceil(own), above)))
  redis.call('ZADD', key, num(ended), id)
end

-- Put a job into the list of its state; return which, if any: one that never ran and was canceled is forgotten there.
-- early: nobody has seen the owner's history yet, so a job that has ended belongs where its end was.
local function list_job(id, early)
  local f = fields(job_key(id), 'owner', 'status', 'created', 'started', 'completed', 'hidden')
  local list, created = LIST_OF[f[2] or ''], tonumber(f[3] or '')
  if not f[1] or not list or not created then return end
  for _, other in ipairs({ 'pending', 'in_progress' }) do
    if other ~= list then redis.call('ZREM', listed_key(f[1], other), id) end
  end
  if f[6] or (f[2] == 'canceled' and not f[4]) then return end
  redis.call('ZADD', listed_key(f[1], list), num(created), id)
  local ended = tonumber(f[5] or '')
  if ended and early then
    redis.call('ZADD', history_key(f[1]), 'NX', num(ended), id)
  elseif ended then
    enter_history(id, f[1], ended)
  end
  return list
end

-- The list of an owner's newest files that has this path, and the name in it; nil for a file in a subfolder.
local function saved_list(owner, path)
  local folder, name = string.match(path, '^(%a+)/([^/]+)$')
  if name then return saved_newest_key(owner, folder), name end
end

local function list_saved(owner, path)
  local list, name = saved_list(owner, path)
  if not list then return end
  local entry = { num(now()), name }
  if type(redis.pcall('ZADD', list, unpack(entry))) == 'table' then  -- somebody put something else there
    redis.call('ZADD', cleared(list, 'zset'), unpack(entry))
  end
end

-- Nothing of this path is there any more.
local function unlist_saved(owner, path)
  local list, name = saved_list(owner, path)
  if list then redis.pcall('ZREM', list, name) end
end

-- The owner can no longer ask for a job's files by their names.
local function drop_saved(id, owner)
  for _, path in ipairs(redis.call('HVALS', cleared(job_names_key(id), 'hash'))) do
    redis.call('HDEL', saved_files_key(owner), path)
    unlist_saved(owner, path)
  end
end

-- Tell who follows all jobs of an owner, and who follows everybody's.
local function publish_owner(id, status, run)
  local f = fields(job_key(id), 'owner', 'client_id', 'prompt_id')
  if not f[1] then return end
  redis.call('PUBLISH', owner_events_key(f[1]), cjson.encode({ job_id = id, status = status,
    client_id = f[2] or cjson.null, prompt_id = f[3] or id, run = run and run ~= '' and run or cjson.null,
    live = redis.call('ZCARD', live_key(f[1])) }))
  redis.call('PUBLISH', changes_key, status .. ' ' .. id .. ' ' .. f[1])
end

-- Make the lists agree with a job's record, which a version without such lists may have changed.  If it had, tell who follows
-- the owner, unless nobody has seen these lists yet (early).  Returns the job's list, if any, and whether it had.
local function mend_job(id, owner, early)
  local f = fields(job_key(id), 'owner', 'status', 'run', 'number')
  if f[1] ~= owner then  -- it was forgotten
    redis.call('ZREM', live_key(owner), id)
    unlist_job(id, owner)
    return nil, true
  end
  local list = LIST_OF[f[2] or '']
  if not list then return nil, false end
  local is_live = list == 'pending' or list == 'in_progress'
  local was
  for _, one in ipairs({ 'pending', 'in_progress' }) do
    if redis.call('ZSCORE', listed_key(owner, one), id) then was = one end
  end
  local shown = list_job(id, early)
  local changed
  if is_live then
    changed = redis.call('ZADD', live_key(owner), 'NX', tonumber(f[4] or '') or 0, id) == 1 or was ~= list
  else
    changed = redis.call('ZREM', live_key(owner), id) == 1 or was
  end
  if changed and not early then publish_owner(id, f[2], f[3]) end
  return shown, changed
end

-- progress: the last of it, as JSON, or nothing.
local function publish_status(id, status, run, node, progress)
  publish(id, 'status', run, '{"status":"' .. status .. '"'
    .. (node and node ~= '' and ',"node":"' .. node .. '"' or '')
    .. (progress and ',"progress":' .. progress or '') .. '}')
  list_job(id)
  batch_moves(id, status)
  publish_owner(id, status, run)
end
