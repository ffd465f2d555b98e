-- What several scripts do.  A script is sent with those parts that it uses, each of which ends at an empty line.
--
-- Before them come SCHEMA, a NAME_key for each key of keys.py (a text, or a function of what it belongs to),
-- RQ_NAME and WORKER_PREFIX.

local args = cjson.decode(ARGV[1])

local MAX_ATTEMPTS = 20  -- kept in a job's record; of more the last

-- The layout that is in Redis; '' if none was ever written.
local function schema()
  local found = redis.pcall('GET', schema_key)
  if type(found) == 'table' then return 'of another kind' end  -- somebody put something else there
  return found or ''
end

-- What a script that takes new work answers if it was written for another layout; nothing if it may go on.
local function other_schema()
  local found = schema()
  if found == '' then found = '1' end
  if found ~= tostring(SCHEMA) then return { 'schema', found } end
end

-- Return whether this start of an agent speaks for its host; another one must have been silent for a while.
local function admitted(host, instance)
  local key = host_agent_key(host)
  local holder = redis.call('GET', key)
  if holder and holder ~= instance then return false end
  redis.call('SET', key, instance, 'PX', 2500)
  return true
end

-- Return the store's id, which changes if it is emptied; then it is the candidate.
local function store_id(candidate)
  redis.call('SET', store_key, candidate, 'NX')
  return redis.call('GET', store_key)
end

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

local function num(x) return string.format('%.6f', x) end

-- A table's names and values, one after the other.
local function flat(named)
  local out = {}
  for name, value in pairs(named) do out[#out + 1] = name; out[#out + 1] = value end
  return out
end

-- Fields of a record.  If the key has another type, which somebody else put there, there is no record.
local function fields(key, ...)
  local found = redis.pcall('HMGET', key, ...)
  return found.err and {} or found
end

-- A key to be written next: a value of another type, which somebody else put there, is dropped.
local function cleared(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
  return key
end

-- ---- RQ's own layout, kept true for `rq info`, RQ's dashboard and Job.fetch: all that writes its keys --------

-- A time as RQ writes it: 2026-01-31T12:00:00.000000Z
local function iso(t)
  local days, secs = math.floor(t / 86400), t % 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local d = doy - math.floor((153 * mp + 2) / 5) + 1
  local m = mp < 10 and mp + 3 or mp - 9
  local y = yoe + era * 400 + (m <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%09.6fZ', y, m, d,
    math.floor(secs / 3600), math.floor(secs % 3600 / 60), secs % 60)
end

-- The year 3000, when a run's time is up for RQ: its clean-up must never end a run of ours.
local RQ_FAR = 32503680000

-- RQ's own pace.  Leases are renewed much more often.
local RQ_BEAT_S = 30

local RQ_END = { succeeded = { 'finished', rq_finished_key, 1 }, failed = { 'failed', rq_failed_key, 2 },
  expired = { 'failed', rq_failed_key, 2 }, canceled = { 'canceled', rq_canceled_key, 3 } }

local function rq_record(id) return cleared(rq_job_key(id), 'hash') end

local function rq_depth() return redis.call('LLEN', rq_queue_key) end

local function rq_enqueue(id, front) redis.call(front and 'LPUSH' or 'RPUSH', rq_queue_key, id) end

local function rq_dequeue(id) redis.call('LREM', rq_queue_key, 1, id) end

-- data: what RQ would call, as JSON.
local function rq_submit(id, data, description, at)
  redis.call('HSET', rq_job_key(id), 'created_at', iso(at), 'enqueued_at', iso(at), 'status', 'queued',
    'data', data, 'description', description, 'origin', RQ_NAME, 'timeout', -1, 'started_at', '', 'ended_at', '',
    'last_heartbeat', '', 'worker_name', '', 'success_callback_name', '', 'failure_callback_name', '')
  redis.call('SADD', rq_queues_key, rq_queue_key)
end

-- Returns what the job's record says that RQ would call.
local function rq_start(id, run, who, at)
  local key, worker = rq_record(id), WORKER_PREFIX .. who
  redis.call('HSET', key, 'status', 'started', 'started_at', iso(at), 'last_heartbeat', iso(at), 'worker_name', worker)
  redis.call('PERSIST', key)
  redis.call('ZADD', rq_started_key, RQ_FAR, id .. ':' .. run)
  redis.call('HSET', rq_execution_key(id, run), 'id', run, 'created_at', num(at), 'last_heartbeat', num(at),
    'worker_name', worker)
  redis.call('ZADD', rq_executions_key(id), RQ_FAR, run)
  return redis.call('HGET', key, 'data')
end

-- last: when RQ was last told of this run's life, if ever.  Returns whether it was told now.
local function rq_beat(id, run, last, at)
  if last and at - (tonumber(last) or 0) < RQ_BEAT_S then return false end
  redis.call('HSET', rq_execution_key(id, run), 'last_heartbeat', num(at))
  redis.call('HSET', rq_record(id), 'last_heartbeat', iso(at))
  return true
end

local function rq_take_over(id, who) redis.call('HSET', rq_record(id), 'worker_name', WORKER_PREFIX .. who) end

local function rq_drop_run(id, run)
  redis.call('ZREM', rq_started_key, id .. ':' .. run)
  redis.call('DEL', rq_execution_key(id, run))
  redis.call('ZREM', rq_executions_key(id), run)
end

local function rq_give_back(id, at)
  redis.call('HSET', rq_record(id), 'status', 'queued', 'enqueued_at', iso(at), 'worker_name', '')
end

-- result: the return value or the exception's text as RQ keeps it, or ''.
local function rq_end(id, status, result, at, expires)
  local state, registry, kind = unpack(RQ_END[status])
  redis.call('HSET', rq_record(id), 'status', state, 'ended_at', iso(at), 'last_heartbeat', iso(at))
  redis.call('ZADD', registry, num(expires), id)
  redis.call('DEL', rq_executions_key(id))
  local entry = { 'XADD', cleared(rq_results_key(id), 'stream'), 'MAXLEN', 10, '*', 'type', kind }
  if result ~= '' then
    entry[#entry + 1] = status == 'succeeded' and 'return_value' or 'exc_string'
    entry[#entry + 1] = result
  end
  redis.call(unpack(entry))
end

local function rq_forget(id)
  redis.call('DEL', rq_job_key(id), rq_results_key(id))
  for _, ended in pairs(RQ_END) do redis.call('ZREM', ended[2], id) end
end

-- ---- what happens to jobs and runs -------------------------------------------------------------------------

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

-- Put a job into the list of its state; return which, if any: one that never ran and was canceled is forgotten there.
local function list_job(id)
  local f = fields(job_key(id), 'owner', 'status', 'created', 'started', 'completed', 'hidden')
  local list, created = LIST_OF[f[2] or ''], tonumber(f[3] or '')
  if not f[1] or not list or not created then return end
  for _, other in ipairs({ 'pending', 'in_progress' }) do
    if other ~= list then redis.call('ZREM', listed_key(f[1], other), id) end
  end
  if f[6] or (f[2] == 'canceled' and not f[4]) then return end
  redis.call('ZADD', listed_key(f[1], list), num(created), id)
  local ended = tonumber(f[5] or '')
  if ended then redis.call('ZADD', history_key(f[1]), num(ended), id) end
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

-- Tell who follows all jobs of an owner.
local function publish_owner(id, status, run)
  local f = fields(job_key(id), 'owner', 'client_id', 'prompt_id')
  if not f[1] then return end
  redis.call('PUBLISH', owner_events_key(f[1]), cjson.encode({ job_id = id, status = status,
    client_id = f[2] or cjson.null, prompt_id = f[3] or id, run = run and run ~= '' and run or cjson.null,
    live = redis.call('ZCARD', live_key(f[1])) }))
end

-- Make the lists agree with a job's record, which a version without such lists may have changed.  If it had, tell who follows
-- the owner, unless quiet.  Returns the job's list, if any, and whether it had.
local function mend_job(id, owner, quiet)
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
  local shown = list_job(id)
  local changed
  if is_live then
    changed = redis.call('ZADD', live_key(owner), 'NX', tonumber(f[4] or '') or 0, id) == 1 or was ~= list
  else
    changed = redis.call('ZREM', live_key(owner), id) == 1 or was
  end
  if changed and not quiet then publish_owner(id, f[2], f[3]) end
  return shown, changed
end

-- progress: the last of it, as JSON, or nothing.
local function publish_status(id, status, run, node, progress)
  publish(id, 'status', run, '{"status":"' .. status .. '"'
    .. (node and node ~= '' and ',"node":"' .. node .. '"' or '')
    .. (progress and ',"progress":' .. progress or '') .. '}')
  list_job(id)
  publish_owner(id, status, run)
end

local function enqueue(id, placement, rank, front)
  redis.call('ZADD', queue_key(placement), rank, id)
  redis.call('SADD', placements_key, placement)
  rq_enqueue(id, front)
end

-- 1 for the next job, 0 for one that does not wait.
local function place_of(id, placement)
  local rank = redis.call('ZSCORE', queue_key(placement), id)
  if not rank then return 0 end
  local place = 1
  for _, other in ipairs(redis.call('SMEMBERS', placements_key)) do
    place = place + redis.call('ZCOUNT', queue_key(other), '-inf', '(' .. rank)
  end
  return place
end

local function dequeue(id, placement)
  redis.call('ZREM', queue_key(placement), id)
  if redis.call('EXISTS', queue_key(placement)) == 0 then
    redis.call('SREM', placements_key, placement)
  end
  rq_dequeue(id)
  redis.call('ZREM', deadlines_key, id)
end

-- Remove a run and what it holds; the caller handles the job.
local function drop_run(run, id, node)
  if node and redis.call('HGET', node_key(node), 'cleans') == '1' then
    redis.call('SADD', cleared(job_cleanups_key(id), 'set'), node .. ' ' .. run)
  end
  if node and redis.call('GET', lease_key(node)) == run then
    redis.call('DEL', lease_key(node))
  end
  if node then redis.call('SREM', node_runs_key(node), run) end
  redis.call('ZREM', runs_key, run)
  redis.call('DEL', run_key(run))
  rq_drop_run(id, run)
end

-- The run that occupies a node, or nil.  An unknown run holds nothing.
local function holder_of(node)
  local run = redis.call('GET', lease_key(node))
  if run and fields(run_key(run), 'job')[1] then return run end
  if run then redis.call('DEL', lease_key(node)) end
  return nil
end

-- The value of a JSON text; an empty table if it is broken: one bad record must not stop other work.
local function decoded(text)
  local ok, found = pcall(cjson.decode, text)
  return ok and type(found) == 'table' and found or {}
end

-- Store an error on a node, for operators.
local function note_error(node, id, err, at)
  if not node or err == '' or redis.call('HEXISTS', nodes_key, node) == 0 then return end
  local told = cjson.decode(err)
  -- An operator's order is not an error, and the fleet's own disk is not the node's fault.
  if told.code == 'released' or told.code == 'insufficient_storage' then return end
  local key = node_errors_key(node)
  redis.call('LPUSH', key, cjson.encode({ at = at, job = id, code = told.code, message = told.message }))
  redis.call('LTRIM', key, 0, 9)
  redis.call('EXPIRE', key, 604800)
end

-- A node no longer has what nodes that are alike share; nobody has it, perhaps.
local function forget_shared(key, whose, node)
  redis.call('SREM', whose, node)
  if redis.call('EXISTS', whose) == 0 then redis.call('DEL', key) end
end

-- Nothing is in a node's memory any more: it has started, was freed, or ran out of memory.
local function unloaded(node) redis.call('DEL', node_models_key(node)) end

-- A job on a node has used these models.  Returns whether an earlier one had used them all.
local function used_models(node, most, models)
  local key = node_models_key(node)
  if #models == 0 then return true end
  local had = redis.call('GET', key)
  local new, rest, left, warm = {}, {}, {}, true
  for _, model in ipairs(models) do new[model] = true end
  for model in string.gmatch(had or '', '[^\n]+') do
    if new[model] then new[model] = false else rest[#rest + 1] = model end
  end
  for _, model in ipairs(models) do
    if new[model] then warm = false end
    left[#left + 1] = model
  end
  for _, model in ipairs(rest) do left[#left + 1] = model end
  redis.call('SET', key, table.concat(left, '\n', 1, math.min(most, #left)))
  return warm
end

-- Its ComfyUI was restarted: its inventory may be different, and a fault may be over.
local function node_started(node)
  local key = node_key(node)
  unloaded(node)
  redis.call('HINCRBY', key, 'starts', 1)
  redis.call('HSET', key, 'wanted', 1)
  redis.call('HDEL', key, 'strikes_oom', 'strikes_gpu', 'strikes_answer', 'strikes_frame', 'restart')
  if redis.call('HGET', key, 'quarantined') == '1' then
    redis.call('HSET', key, 'cordoned', 0, 'cordon_reason', '')
    redis.call('HDEL', key, 'quarantined')
  end
  redis.call('PUBLISH', wake_nodes_key, 'nodes')
end

-- Two nodes are one ComfyUI: the one that was added later gets no jobs, unless one of them gets none anyway.
local function one_comfyui(node, other)
  local function cordoned(name) return redis.call('HGET', node_key(name), 'cordoned') == '1' end
  if cordoned(node) or cordoned(other) then return end
  local function added(name) return tonumber(decoded(redis.call('HGET', nodes_key, name)).added_at) or 0 end
  local a, b = added(node), added(other)
  if a < b or (a == b and node < other) then node, other = other, node end
  redis.call('HSET', node_key(node), 'cordoned', 1, 'twin', other,
    'cordon_reason', 'is the same ComfyUI as node ' .. other .. ': one ComfyUI is one node')
  redis.call('PUBLISH', wake_nodes_key, 'nodes')
end

-- A node is removed or moves: those that got no jobs because they are the same ComfyUI may get some.
local function free_twins(node)
  for _, name in ipairs(redis.call('HKEYS', nodes_key)) do
    local key = node_key(name)
    if redis.call('HGET', key, 'twin') == node then
      redis.call('HSET', key, 'cordoned', 0, 'cordon_reason', '')
      redis.call('HDEL', key, 'twin')
    end
  end
end

-- A run was just in a node's queue.  A run's id is drawn for one lease and posted to one ComfyUI, so two nodes
-- with it are the same ComfyUI.  Neither may have moved since, and a forwarded port may lead elsewhere by now.
local SHOWN_S = 5
local function shown_at(run, node, address)
  if redis.call('HGET', node_key(node), 'url') ~= address then return end  -- looked at before it moved
  local key = run_shown_key(run)
  redis.call('HSET', key, node, num(now()) .. ' ' .. address)
  redis.call('EXPIRE', key, SHOWN_S)
  local seen = redis.call('HGETALL', key)
  for i = 1, #seen, 2 do
    local at, where = seen[i + 1]:match('^(%S+) (%S+)$')
    if seen[i] ~= node and now() - tonumber(at) <= SHOWN_S
      and redis.call('HGET', node_key(seen[i]), 'url') == where then
      one_comfyui(node, seen[i])
    end
  end
end

-- A placement class with one more condition: cards of this size are too small.  POOLS:NODES:WITHOUT:NEEDS:ABOVE
local function with_above(placement, bytes)
  local parts = {}
  for part in string.gmatch(placement .. ':', '([^:]*):') do parts[#parts + 1] = part end
  for i = #parts + 1, 4 do parts[i] = '' end
  parts[5] = string.format('%d', bytes)
  return table.concat(parts, ':')
end

local function above_of(placement)
  return tonumber(string.match(placement, '^[^:]*:[^:]*:[^:]*:[^:]*:(%d+)$') or 0)
end

-- Names of the copies that Preview3D put into the root of a node's output folder, each after a blank.
local function strays(id)
  local names = ''
  for _, output in ipairs(redis.call('HVALS', cleared(job_outputs_key(id), 'hash'))) do
    local drawn, extension = string.match(output, '"name":"preview3d_(%x+)[_%d]*(%.%w+)"')
    if drawn and #drawn == 32 then names = names .. ' preview3d_' .. drawn .. extension end
  end
  return names
end

-- The job is final: the agents beside its nodes may delete what its runs left there.
local function discard(id, at)
  local key = cleared(job_cleanups_key(id), 'set')
  local last = fields(job_key(id), 'run')[1]  -- whose outputs the job has
  for _, trace in ipairs(redis.call('SMEMBERS', key)) do
    local node, run = string.match(trace, '^(%S+) (%S+)$')
    local host = redis.call('HGET', node_key(node), 'host')
    if host then
      local cleanup = cleanup_key(host)
      local more = run == last and strays(id) or ''
      redis.call('ZADD', cleanup, num(at), node .. ' ' .. id .. ' ' .. run .. more)
      redis.call('ZREMRANGEBYSCORE', cleanup, '-inf', num(at - 604800))  -- of a host that never came back
    end
  end
  redis.call('DEL', key)
end

-- An asset's record, or nil.
local function asset_of(id)
  local had, found = redis.call('HGETALL', asset_key(id)), {}
  for i = 1, #had, 2 do found[had[i]] = had[i + 1] end
  return next(found) and found or nil
end

-- Write an asset's record; 1 if the bytes are new to its owner.
local function add_asset(r)
  redis.call('HSET', asset_key(r.id), unpack(flat(r)))
  redis.call('SADD', blob_refs_key(r.path), r.id)
  redis.call('ZREM', blob_unused_key, r.hash .. ' ' .. r.path)
  redis.call('ZREM', blob_strays_key, r.path)
  local mine = blob_owner_key(r.owner, r.hash)
  redis.call('SADD', mine, r.id)
  if r.job_id then
    redis.call('HSET', asset_outputs_key(r.job_id), r.hash .. '\0' .. r.file_path, r.id)
  else
    local name = r.listed or r.file_path
    if not r.folder then redis.call('HSET', blob_same_key(r.owner, r.hash), r.file_path, r.id) end
    redis.call('ZADD', asset_names_key(r.owner, name), r.created_at, r.id)
    redis.call('ZADD', asset_uploads_key(r.owner, r.folder or 'input'), r.created_at, name)
    if r.expires_at then redis.call('ZADD', asset_expiry_key, r.expires_at, r.id) end
  end
  return redis.call('SCARD', mine) == 1 and 1 or 0
end

-- Asking for the bytes of an upload again makes them stay longer, never shorter. Outputs go with their job.
local function stay(old, r)
  if not old.expires_at or old.job_id then return end
  local key = asset_key(old.id)
  if r.renews then redis.call('HSET', key, 'renews', '1') end
  if r.expires_at and tonumber(r.expires_at) <= tonumber(old.expires_at) then return end
  if r.expires_at then
    redis.call('HSET', key, 'expires_at', r.expires_at)
    redis.call('ZADD', asset_expiry_key, r.expires_at, old.id)
  else
    redis.call('HDEL', key, 'expires_at')
    redis.call('ZREM', asset_expiry_key, old.id)
  end
end

-- A job that ends no longer needs an asset; it stays as long as the job's record, unless its client set its end.
local function let_go(asset, id, expires)
  local key = asset_key(asset)
  redis.call('SREM', asset_jobs_key(asset), id)
  local f = redis.call('HMGET', key, 'renews', 'expires_at')
  if f[1] and f[2] and tonumber(f[2]) < expires then
    redis.call('HSET', key, 'expires_at', num(expires))
    redis.call('ZADD', asset_expiry_key, num(expires), asset)
  end
end

-- The one way in which a job becomes final; progress: how far it came, as JSON, if that is new.
local function end_job(id, status, err, result, at, progress)
  local key = job_key(id)
  local f = redis.call('HMGET', key, 'expires_in', 'assets', 'run', 'node', 'owner')
  local expires = at + (tonumber(f[1] or '') or 604800)
  redis.call('HSET', key, 'status', status, 'completed', num(at), 'expires', num(expires))
  if err ~= '' and status ~= 'canceled' and status ~= 'succeeded' then redis.call('HSET', key, 'error', err) end
  if progress then redis.call('HSET', key, 'progress', progress) end
  redis.call('HDEL', key, 'waits')
  if f[5] then redis.call('ZREM', live_key(f[5]), id) end
  redis.call('DEL', job_secret_key(id), job_preview_key(id))
  redis.call('ZADD', expiring_key, num(expires), id)
  for asset in string.gmatch(f[2] or '', '%S+') do let_go(asset, id, expires) end
  rq_end(id, status, result, at, expires)
  if f[4] and redis.call('HEXISTS', nodes_key, f[4]) == 1 then
    local node = node_key(f[4])
    redis.call('HINCRBY', node, status, 1)
    if status == 'succeeded' then redis.call('HDEL', node, 'strikes_oom', 'strikes_gpu', 'strikes_answer', 'strikes_frame', 'renewed') end
    if status == 'failed' then note_error(f[4], id, err, at) end
  end
  discard(id, at)
  publish_status(id, status, f[3], f[4], progress)
end

-- Facts for observers about a job that ended without the end of a run: {job, workflow, seconds since its submit}.
-- A field that can't be read is ''.
local function ended_job(id, at)
  local f = redis.pcall('HMGET', job_key(id), 'workflow', 'created')
  if f.err then f = {} end
  return { id, f[1] or '', num(at - (tonumber(f[2] or '') or at)) }
end

-- End a job that waits; return the facts for observers.
local function end_queued(id, placement, status, err, result, at)
  dequeue(id, placement)
  end_job(id, status, err, result, at)
  return ended_job(id, at)
end

-- A run is over: store its end in its job's record.
-- why: {code, message}, or nil;  counted: whether it uses one of the job's attempts up.
local function note_attempt(run, id, node, since, why, counted, at)
  local key = job_key(id)
  local had = redis.call('HGET', key, 'attempts')
  local all = had and decoded(had) or {}
  local one = { run = run, node = node, started = tonumber(since) or at, ended = at, counted = counted, error = why }
  all[#all + 1] = one
  while #all > MAX_ATTEMPTS do table.remove(all, 1) end
  redis.call('HSET', key, 'attempts', cjson.encode(all))
end

-- How many listen to the frames of a job's runs: those that follow the job, and those that follow its client.
local function listeners(id)
  local f = fields(job_key(id), 'owner', 'client_id')
  local clients = client_frames_key(f[2] and redis.sha1hex(f[2]) or '', f[1] or '')
  local found = redis.call('PUBSUB', 'NUMSUB', frames_key(id), clients)
  return found[2] + found[4]
end

-- Whether this token still owns the run; a writer that does not must touch nothing.
local function owned(run, token)
  return fields(run_key(run), 'token')[1] == token
end
