-- Shared by every script: the glossary of keys and the few moves that several scripts make.
--
-- fleet:job:ID            hash    the job's record, see codec.py
-- fleet:job:ID:outputs    hash    NODE\nKEY\nINDEX -> output as JSON
-- fleet:job:ID:ui        string  what the graph's nodes handed over for the user interface: JSON by node id
-- fleet:job:ID:secret     string  encrypted extra_data, erased when the job ends
-- fleet:job:ID:preview    string  the latest preview, for readers who come late
-- fleet:graph:HASH        string  a graph as submitted;  fleet:graphs  hash  HASH -> jobs that need it
-- fleet:jobs[:OWNER]      zset    ID -> created
-- fleet:placements        set     placement classes that have queued jobs
-- fleet:queue:PLACEMENT   zset    ID -> rank; the lowest goes first (created - priority * ageing)
-- fleet:deadlines         zset    ID -> deadline, queued jobs only
-- fleet:expiring          zset    ID -> when its retention ends, final jobs only
-- fleet:runs              zset    RUN -> when its lease ends
-- fleet:run:RUN           hash    job, node, token, dispatcher, phase, manifest
-- fleet:lease:NODE        string  the run that occupies the node
-- fleet:nodes             hash    NODE -> JSON;  fleet:node:NODE  hash  cordoned, verdict, counts,
--                                 twin (the node that is the same ComfyUI),
--                                 speed (mean logarithm over speeds runs)
-- fleet:node:NODE:runs    set     runs that still need it;  fleet:node:NODE:errors  list  the last ten, as JSON
-- fleet:node:NODE:models  string  files that jobs used since it started or was freed, the latest first, one a line
-- fleet:urls              hash    HOST:PORT -> NODE: one ComfyUI is one node
-- fleet:pool:POOL         set     its nodes;  fleet:pools  hash  POOL -> what is set, JSON;  fleet:pools:slots  hash  POOL -> slot
-- fleet:inventory:HASH    string  what nodes have, packed;  fleet:inventory:HASH:nodes  set  whose it is
-- fleet:reading:NODE      string  somebody asks the node what it has
-- fleet:needs:KEY         string  what a placement class needs of a node, as JSON
-- fleet:oom:PROFILE       string  bytes of the largest card on which it ran out of memory
-- fleet:hosts             zset    HOST -> last heartbeat;  fleet:host:HOST  string  that heartbeat, for 10 s
-- fleet:host:HOST:agent   string  which start of an agent speaks for it, for 2.5 s
-- fleet:host:HOST:nodes   set     nodes that its agent registered
-- fleet:gpu:UUID          hash    NODE -> when its agent told, and what it holds there, as JSON
-- fleet:report:NODE       string  what an agent last saw of the node, for 10 s
-- fleet:run:RUN:shown     hash    NODE -> when its queue last held the run, and the HOST:PORT that was looked at
-- fleet:trash:HOST        zset    NODE JOB RUN [STRAY ...] -> when its files became useless: its agent deletes them
-- fleet:job:ID:traces     set     NODE RUN: runs whose files stay on nodes until the job is final
-- fleet:idem:SCOPE:HASH   string  JOB FINGERPRINT, 24 h
-- fleet:durations:PROFILE list    the last 50 run times in seconds;  "*" is every profile
-- fleet:latest            list    SECONDS NODE of the last 50 jobs that succeeded
-- fleet:asset:ID          hash    an asset's record, see asset_record.py
-- fleet:asset:ID:jobs     set     live jobs that need the asset (submit adds, the job's end removes)
-- fleet:asset:hold:JOB    string  this job is about to be written, for 60 s
-- fleet:asset:job:JOB     hash    HASH NUL NAME -> id: the job's outputs
-- fleet:asset:names:OWNER:NAME  zset  ids of uploads with this name in any spelling, by time
-- fleet:asset:expiry      zset    ID -> when it ends, uploads only
-- fleet:blob:owner:OWNER:HASH   set   ids of the owner's records over these bytes
-- fleet:blob:same:OWNER:HASH    hash  NAME -> the newest upload with these bytes and this name
-- fleet:blob:at:HASH      string  PATH of these bytes, for the next upload of them
-- fleet:blob:refs:PATH    set     ids of the records over a blob.  PATH is the blob store's own word
-- fleet:blob:unused       zset    HASH PATH -> when its last record went: it waits for the sweep
-- fleet:blob:strays       zset    PATH -> when it was found without any record
-- fleet:blob:condemned    zset    PATH -> since when it is being deleted: nothing uses it again
-- fleet:blob:walked       string  all blobs were looked through within the last hour
-- fleet:blob:{pins,doomed,gone:PATH}  of versions that deleted blobs at once, see condemn_blobs.lua
-- fleet:events:ID         channel everything that happens to a job
-- fleet:store             string  drawn when the store was first used: one that was emptied has another
-- fleet:schema            string  the layout of all this; where it is missing, the first (1). SCHEMA is the script's own
-- fleet:wake              channel "job PLACEMENT", "free", "cancel RUN", "release RUN", "schema": for dispatchers
-- fleet:wake:nodes        channel something about the nodes has changed: for everybody who keeps a list of them
-- rq:*                    RQ 2.12's own layout, kept true so that `rq info` and Job.fetch work
--
-- All times are the server's, in seconds: no client's clock is trusted.

local QUEUE = 'fleet'
local RQ_QUEUE = 'rq:queue:' .. QUEUE
local FAR = 32503680000  -- the year 3000: RQ's own clean-up must never end a run of ours

local MAX_ATTEMPTS = 20  -- kept in a job's record; of more the last

-- The layout that is in Redis; '' if none was ever written.
local function schema()
  local found = redis.pcall('GET', 'fleet:schema')
  if type(found) == 'table' then return 'of another kind' end  -- somebody put something else there
  return found or ''
end

-- What a script that takes new work answers if it was written for another layout; nothing if it may go on.
local function other_schema()
  local found = schema()
  if found == '' then found = '1' end
  if found ~= tostring(SCHEMA) then return { 'schema', found } end
end

-- Tell whether this start of an agent speaks for its host; another one must have been silent for a while.
local function admitted(host, instance)
  local key = 'fleet:host:' .. host .. ':agent'
  local holder = redis.call('GET', key)
  if holder and holder ~= instance then return false end
  redis.call('SET', key, instance, 'PX', 2500)
  return true
end

-- Return what tells this store from one that was emptied; the candidate if it was.
local function store_id(candidate)
  redis.call('SET', 'fleet:store', candidate, 'NX')
  return redis.call('GET', 'fleet:store')
end

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

local function num(x) return string.format('%.6f', x) end

local function iso(t)
  -- RQ writes 2026-01-31T12:00:00.000000Z
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

local function jobkey(id) return 'fleet:job:' .. id end

-- Fields of a record.  Where the key holds something else, which somebody put there, there is no record.
local function fields(key, ...)
  local found = redis.pcall('HMGET', key, ...)
  return found.err and {} or found
end

-- A key that is written next: something of another type, which somebody put there, is dropped.
local function cleared(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
  return key
end

-- Keep what the graph's nodes handed over, as JSON, instead of what is there; '' says nothing of it.
local function keep_ui(id, ui)
  if ui ~= '' then redis.call('SET', jobkey(id) .. ':ui', ui) end
end

local function rqkey(id) return cleared('rq:job:' .. id, 'hash') end

-- A job's graph, or false.
local function graph_of(id)
  local graph = redis.pcall('GET', 'fleet:graph:' .. (fields(jobkey(id), 'graph')[1] or ''))
  return type(graph) == 'string' and graph
end

local function publish(id, kind, run, data)
  local seq = redis.pcall('HINCRBY', jobkey(id), 'seq', 1)
  if type(seq) == 'table' then  -- no number: whoever follows reads the record instead
    seq = 1
    redis.call('HSET', jobkey(id), 'seq', seq)
  end
  redis.call('PUBLISH', 'fleet:events:' .. id, '{"seq":' .. seq .. ',"type":"' .. kind .. '","run":'
    .. (run and run ~= '' and '"' .. run .. '"' or 'null') .. ',"data":' .. data .. '}')
  return seq
end

-- progress: the last of it, as JSON, or nothing.
local function publish_status(id, status, run, node, progress)
  publish(id, 'status', run, '{"status":"' .. status .. '"'
    .. (node and node ~= '' and ',"node":"' .. node .. '"' or '')
    .. (progress and ',"progress":' .. progress or '') .. '}')
end

local function enqueue(id, placement, rank, front)
  redis.call('ZADD', 'fleet:queue:' .. placement, rank, id)
  redis.call('SADD', 'fleet:placements', placement)
  redis.call(front and 'LPUSH' or 'RPUSH', RQ_QUEUE, id)
end

-- 1 for the next job, 0 for one that does not wait.
local function place_of(id, placement)
  local rank = redis.call('ZSCORE', 'fleet:queue:' .. placement, id)
  if not rank then return 0 end
  local place = 1
  for _, other in ipairs(redis.call('SMEMBERS', 'fleet:placements')) do
    place = place + redis.call('ZCOUNT', 'fleet:queue:' .. other, '-inf', '(' .. rank)
  end
  return place
end

local function dequeue(id, placement)
  redis.call('ZREM', 'fleet:queue:' .. placement, id)
  if redis.call('EXISTS', 'fleet:queue:' .. placement) == 0 then
    redis.call('SREM', 'fleet:placements', placement)
  end
  redis.call('LREM', RQ_QUEUE, 1, id)
  redis.call('ZREM', 'fleet:deadlines', id)
end

-- Forget a run and what it holds; the job itself is the caller's business.
local function drop_run(run, id, node)
  if node and redis.call('HGET', 'fleet:node:' .. node, 'cleans') == '1' then
    redis.call('SADD', cleared(jobkey(id) .. ':traces', 'set'), node .. ' ' .. run)
  end
  if node and redis.call('GET', 'fleet:lease:' .. node) == run then
    redis.call('DEL', 'fleet:lease:' .. node)
  end
  if node then redis.call('SREM', 'fleet:node:' .. node .. ':runs', run) end
  redis.call('ZREM', 'fleet:runs', run)
  redis.call('DEL', 'fleet:run:' .. run)
  local member = id .. ':' .. run
  redis.call('ZREM', 'rq:wip:' .. QUEUE, member)
  redis.call('DEL', 'rq:execution:' .. member)
  redis.call('ZREM', 'rq:executions:' .. id, run)
end

-- The run that occupies a node, or nil.  One that nobody knows holds nothing.
local function holder_of(node)
  local run = redis.call('GET', 'fleet:lease:' .. node)
  if run and fields('fleet:run:' .. run, 'job')[1] then return run end
  if run then redis.call('DEL', 'fleet:lease:' .. node) end
  return nil
end

local RQ_END = { succeeded = { 'finished', 'rq:finished:', 1 }, failed = { 'failed', 'rq:failed:', 2 },
  expired = { 'failed', 'rq:failed:', 2 }, canceled = { 'canceled', 'rq:canceled:', 3 } }

-- What a JSON text stands for; an empty table if it is broken: one record must not hold up whoever meets it.
local function decoded(text)
  local ok, found = pcall(cjson.decode, text)
  return ok and type(found) == 'table' and found or {}
end

-- Keep what went wrong on a node, for who looks after it.
local function note_error(node, id, err, at)
  if not node or err == '' or redis.call('HEXISTS', 'fleet:nodes', node) == 0 then return end
  local told = cjson.decode(err)
  -- An operator's wish is no error, and the fleet's own disk is not the node's.
  if told.code == 'released' or told.code == 'insufficient_storage' then return end
  local key = 'fleet:node:' .. node .. ':errors'
  redis.call('LPUSH', key, cjson.encode({ at = at, job = id, code = told.code, message = told.message }))
  redis.call('LTRIM', key, 0, 9)
  redis.call('EXPIRE', key, 604800)
end

-- A node no longer has this inventory; nobody has it, perhaps.
local function forget_inventory(digest, node)
  local key = 'fleet:inventory:' .. digest
  redis.call('SREM', key .. ':nodes', node)
  if redis.call('EXISTS', key .. ':nodes') == 0 then redis.call('DEL', key) end
end

-- Nothing is in a node's memory any more: it has started, was freed, or ran out of memory.
local function unloaded(node) redis.call('DEL', 'fleet:node:' .. node .. ':models') end

-- A job on a node has used these models.  Returns whether an earlier one had used them all.
local function used_models(node, most, models)
  local key = 'fleet:node:' .. node .. ':models'
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

-- Its ComfyUI has started anew: what it has may be different, and a fault may be over.
local function node_started(node)
  local key = 'fleet:node:' .. node
  unloaded(node)
  redis.call('HINCRBY', key, 'starts', 1)
  redis.call('HSET', key, 'wanted', 1)
  redis.call('HDEL', key, 'strikes_oom', 'strikes_gpu', 'strikes_answer', 'strikes_frame', 'restart')
  if redis.call('HGET', key, 'quarantined') == '1' then
    redis.call('HSET', key, 'cordoned', 0, 'cordon_reason', '')
    redis.call('HDEL', key, 'quarantined')
  end
  redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes')
end

-- Two nodes are one ComfyUI: the one that was added later gets no jobs, unless one of them gets none anyway.
local function one_comfyui(node, other)
  local function cordoned(name) return redis.call('HGET', 'fleet:node:' .. name, 'cordoned') == '1' end
  if cordoned(node) or cordoned(other) then return end
  local function added(name) return tonumber(decoded(redis.call('HGET', 'fleet:nodes', name)).added_at) or 0 end
  local a, b = added(node), added(other)
  if a < b or (a == b and node < other) then node, other = other, node end
  redis.call('HSET', 'fleet:node:' .. node, 'cordoned', 1, 'twin', other,
    'cordon_reason', 'is the same ComfyUI as node ' .. other .. ': one ComfyUI is one node')
  redis.call('PUBLISH', 'fleet:wake:nodes', 'nodes')
end

-- A node is removed or moves: those that got no jobs because they are the same ComfyUI may get some.
local function free_twins(node)
  for _, name in ipairs(redis.call('HKEYS', 'fleet:nodes')) do
    local key = 'fleet:node:' .. name
    if redis.call('HGET', key, 'twin') == node then
      redis.call('HSET', key, 'cordoned', 0, 'cordon_reason', '')
      redis.call('HDEL', key, 'twin')
    end
  end
end

-- A node's queue has just held a run.  A run's id is drawn for one lease and posted to one ComfyUI, so two nodes
-- that show it are that one.  Neither may have moved since, and a forwarded port may lead elsewhere by now.
local SHOWN_S = 5
local function shown_at(run, node, address)
  if redis.call('HGET', 'fleet:node:' .. node, 'url') ~= address then return end  -- looked at before it moved
  local key = 'fleet:run:' .. run .. ':shown'
  redis.call('HSET', key, node, num(now()) .. ' ' .. address)
  redis.call('EXPIRE', key, SHOWN_S)
  local seen = redis.call('HGETALL', key)
  for i = 1, #seen, 2 do
    local at, where = seen[i + 1]:match('^(%S+) (%S+)$')
    if seen[i] ~= node and now() - tonumber(at) <= SHOWN_S
      and redis.call('HGET', 'fleet:node:' .. seen[i], 'url') == where then
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
  for _, output in ipairs(redis.call('HVALS', cleared(jobkey(id) .. ':outputs', 'hash'))) do
    local name = string.match(output, '"name":"(preview3d_%x+%.%w+)"')
    if name and #string.match(name, '_(%x+)%.') == 32 then names = names .. ' ' .. name end
  end
  return names
end

-- The job is final: the agents beside its nodes may delete what its runs left there.
local function discard(id, at)
  local key = cleared(jobkey(id) .. ':traces', 'set')
  local last = fields(jobkey(id), 'run')[1]  -- whose outputs the job has
  for _, trace in ipairs(redis.call('SMEMBERS', key)) do
    local node, run = string.match(trace, '^(%S+) (%S+)$')
    local host = redis.call('HGET', 'fleet:node:' .. node, 'host')
    if host then
      local trash = 'fleet:trash:' .. host
      local more = run == last and strays(id) or ''
      redis.call('ZADD', trash, num(at), node .. ' ' .. id .. ' ' .. run .. more)
      redis.call('ZREMRANGEBYSCORE', trash, '-inf', num(at - 604800))  -- of a host that never came back
    end
  end
  redis.call('DEL', key)
end

-- An asset's record, or nil.
local function asset_of(id)
  local flat = redis.call('HGETALL', 'fleet:asset:' .. id)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return next(found) and found or nil
end

-- Write an asset's record; 1 if the bytes are new to its owner.
local function add_asset(r)
  local flat = {}
  for key, value in pairs(r) do flat[#flat + 1] = key; flat[#flat + 1] = value end
  redis.call('HSET', 'fleet:asset:' .. r.id, unpack(flat))
  redis.call('SADD', 'fleet:blob:refs:' .. r.path, r.id)
  redis.call('ZREM', 'fleet:blob:unused', r.hash .. ' ' .. r.path)
  redis.call('ZREM', 'fleet:blob:strays', r.path)
  local mine = 'fleet:blob:owner:' .. r.owner .. ':' .. r.hash
  redis.call('SADD', mine, r.id)
  if r.job_id then
    redis.call('HSET', 'fleet:asset:job:' .. r.job_id, r.hash .. '\0' .. r.file_path, r.id)
  else
    redis.call('HSET', 'fleet:blob:same:' .. r.owner .. ':' .. r.hash, r.file_path, r.id)
    redis.call('ZADD', 'fleet:asset:names:' .. r.owner .. ':' .. (r.listed or r.file_path), r.created_at, r.id)
    if r.expires_at then redis.call('ZADD', 'fleet:asset:expiry', r.expires_at, r.id) end
  end
  return redis.call('SCARD', mine) == 1 and 1 or 0
end

-- A job that ends needs an asset no longer; it stays as long as the job's record, unless its client said when it ends.
local function let_go(asset, id, expires)
  local key = 'fleet:asset:' .. asset
  redis.call('SREM', key .. ':jobs', id)
  local f = redis.call('HMGET', key, 'renews', 'expires_at')
  if f[1] and f[2] and tonumber(f[2]) < expires then
    redis.call('HSET', key, 'expires_at', num(expires))
    redis.call('ZADD', 'fleet:asset:expiry', num(expires), asset)
  end
end

-- The one way in which a job becomes final; progress: how far it came, as JSON, if that is new.
local function end_job(id, status, err, result, at, progress)
  local key = jobkey(id)
  local f = redis.call('HMGET', key, 'expires_in', 'assets', 'run', 'node')
  local expires = at + (tonumber(f[1] or '') or 604800)
  redis.call('HSET', key, 'status', status, 'completed', num(at), 'expires', num(expires))
  if err ~= '' and status ~= 'canceled' and status ~= 'succeeded' then redis.call('HSET', key, 'error', err) end
  if progress then redis.call('HSET', key, 'progress', progress) end
  redis.call('HDEL', key, 'waits')
  redis.call('DEL', key .. ':secret', key .. ':preview')
  redis.call('ZADD', 'fleet:expiring', num(expires), id)
  for asset in string.gmatch(f[2] or '', '%S+') do let_go(asset, id, expires) end
  local rq = RQ_END[status]
  redis.call('HSET', rqkey(id), 'status', rq[1], 'ended_at', iso(at), 'last_heartbeat', iso(at))
  redis.call('ZADD', rq[2] .. QUEUE, num(expires), id)
  redis.call('DEL', 'rq:executions:' .. id)
  local entry = { 'XADD', cleared('rq:results:' .. id, 'stream'), 'MAXLEN', 10, '*', 'type', rq[3] }
  if result ~= '' then
    entry[#entry + 1] = status == 'succeeded' and 'return_value' or 'exc_string'
    entry[#entry + 1] = result
  end
  redis.call(unpack(entry))
  if f[4] and redis.call('HEXISTS', 'fleet:nodes', f[4]) == 1 then
    local node = 'fleet:node:' .. f[4]
    redis.call('HINCRBY', node, status, 1)
    if status == 'succeeded' then redis.call('HDEL', node, 'strikes_oom', 'strikes_gpu', 'strikes_answer', 'strikes_frame', 'renewed') end
    if status == 'failed' then note_error(f[4], id, err, at) end
  end
  discard(id, at)
  publish_status(id, status, f[3], f[4], progress)
end

-- What observers are told of a job that ended without the end of a run: {job, workflow, seconds since its submit}.
-- A field that can't be read is ''.
local function ended_job(id, at)
  local f = redis.pcall('HMGET', jobkey(id), 'workflow', 'created')
  if f.err then f = {} end
  return { id, f[1] or '', num(at - (tonumber(f[2] or '') or at)) }
end

-- End a job that waits; returns what observers are told of it.
local function end_queued(id, placement, status, err, result, at)
  dequeue(id, placement)
  end_job(id, status, err, result, at)
  return ended_job(id, at)
end

-- A run is over: keep what became of it in its job's record.
-- err: why, as JSON {code, message}, or '';  counted: whether it uses one of the job's attempts up.
local function note_attempt(run, id, node, since, err, counted, at)
  local key = jobkey(id)
  local had = redis.call('HGET', key, 'attempts')
  local all = had and decoded(had) or {}
  local one = { run = run, node = node, started = tonumber(since) or at, ended = at, counted = counted }
  if err ~= '' then one.error = cjson.decode(err) end
  all[#all + 1] = one
  while #all > MAX_ATTEMPTS do table.remove(all, 1) end
  redis.call('HSET', key, 'attempts', cjson.encode(all))
end

-- Whether this token still owns the run; a writer that does not must touch nothing.
local function owned(run, token)
  return fields('fleet:run:' .. run, 'token')[1] == token
end
