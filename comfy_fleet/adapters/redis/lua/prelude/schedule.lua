-- The rules of domain/schedule in Redis (docs/adr/0038): what waits, of whom, and what it loads.  What is called `read` counts
-- as there.

-- What this call has read; what is here is true until the call ends, because all writes go through it.
local sched = { accounts = {}, dirty = {}, clocks = {}, backlogs = {}, sets = {}, jobs = {}, firsts = {}, pools = {}, holders = {},
  queues = {}, weights = {}, guesses = {}, able = {}, unable = {}, able_holders = {}, reads = 0 }

local SCHED = { HEADS = 64, CHOSEN = 48, MENDED = 5, TIER = 1e11, HORIZON_S = 3600, UNHELD = 1e12, GIB = 1073741824, IDLE = -1,
  KEPT_S = 2592000, FILES = 64, CLOCKS = 4096, LISTED = 16, BASES = 256, DROPPED = 8, PRESSED = 20, NODE_CLOCKS = 256, GUESS_S = 0.1,
  COUNTED = 1000 }

-- A command's answer.  A key of another type, which somebody else put there, is dropped, and so is what should be a number and is
-- none: it must not stop other work.
local function sched_call(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    if string.find(answer.err, 'WRONGTYPE', 1, true) then redis.call('DEL', key) end
    if string.find(answer.err, 'hash value is not', 1, true) then redis.call('HDEL', key, (...)) end
    return redis.call(command, key, ...)
  end
  return answer
end

local function sched_text(x) return string.format('%.17g', x) end

-- A number from a record, or else the default.
local function sched_number(text, default)
  local x = tonumber(text or '')
  if not x or x ~= x or x > 1e15 or x < -1e15 then return default end
  return x
end

-- A list from a JSON text, empty if it is broken.
local function sched_list(text)
  if not text then return {} end
  local ok, found = pcall(cjson.decode, text)
  return ok and type(found) == 'table' and found or {}
end

-- Files with their sizes from a JSON text: {{file, bytes}, ...}.
local function sched_files(text)
  local files = {}
  for _, file in ipairs(sched_list(text)) do
    if type(file) == 'table' and type(file[1]) == 'string' and type(file[2]) == 'number' and file[2] >= 0 and #files < SCHED.FILES then
      files[#files + 1] = { file[1], math.min(file[2], 1e15) }
    end
  end
  return files
end

-- A set of models: {files, family, family_size, size}; one that is not known has no files.
local function sched_set(key)
  local known = sched.sets[key]
  if known then return known end
  known = { files = sched_files(sched_call('GET', sched_set_key(key))), family = '', family_size = 0, size = 0 }
  for _, file in ipairs(known.files) do
    local size = file[2]
    known.size = known.size + size
    if size > known.family_size or known.family == '' or (size == known.family_size and file[1] > known.family) then
      known.family, known.family_size = file[1], size
    end
  end
  sched.sets[key] = known
  return known
end

-- How long a profile's runs compute on a node of speed 1, in seconds, or nil; "*": the mean of all, or 10.
local function sched_run_s(profile)
  local known = sched.guesses[profile]
  if known == nil then
    known = sched_number(fields(sched_profile_key(profile), 'run_s')[1], profile == '*' and 10 or false)
    sched.guesses[profile] = known
  end
  return known or nil
end

-- What choosing reads of a job's record.
local SCHED_FIELDS = { 'owner', 'placement', 'tier', 'rank', 'run_s', 'set', 'family', 'created', 'finish_by', 'overdue_at', 'late',
  'profile', 'tenant', 'bounds' }

-- Read these fields, too.
local function sched_read_fields(more)
  local names, at = {}, {}
  for _, each in ipairs({ SCHED_FIELDS, more }) do
    for _, name in ipairs(each) do
      names[#names + 1] = name
      at[name] = #names
    end
  end
  sched.names, sched.jobs = names, {}
  sched.by_name = { __index = function(found, name) return at[name] and rawget(found, at[name]) or nil end }
end

-- A waiting job, or false if its record can't be read.  f: these fields and those that the caller asked for, by name.
local function sched_job(id)
  local job = sched.jobs[id]
  if job ~= nil then return job end
  if not sched.names then sched_read_fields({}) end
  local f = setmetatable(fields(job_key(id), unpack(sched.names)), sched.by_name)
  job = false
  if f.owner and f.placement then
    local created = sched_number(f.created, 0)
    job = { id = id, f = f, owner = f.owner, tenant = f.tenant or '', placement = f.placement, tier = sched_number(f.tier, 1),
      rank = sched_number(f.rank, created), created = created, guessed = not f.run_s,
      run_s = math.min(math.max(sched_number(f.run_s, nil) or sched_run_s(f.profile or '*') or sched_run_s('*'), 0), 1e7),
      set = f.set, family = f.family or f.set and sched_set(f.set).family or '',
      finish_by = sched_number(f.finish_by, nil), overdue_at = sched_number(f.overdue_at, nil), late = f.late == '1' }
  end
  sched.jobs[id] = job
  return job
end

-- A job's place among its owner's: the tier, then the rank or the wish to be finished.
local function sched_order(job)
  local tier = job.tier * SCHED.TIER
  if not job.finish_by then return tier + job.rank end
  local start = job.late and job.finish_by or job.finish_by - job.run_s - SCHED.HORIZON_S
  return tier + start - (job.created - job.rank)
end

-- The first entry of an index of jobs, and whether there is a second; nil if it is empty.
local function sched_first(index)
  local known = sched.firsts[index]
  if not known then
    known = sched_call('ZRANGE', index, 0, 1)
    sched.firsts[index] = known
  end
  return known[1], known[2] ~= nil
end

-- Take a job out of an index of jobs.  Returns whether it was there, and whether the index is empty now.
local function sched_drop(index, id)
  local known, found = sched.firsts[index], sched_call('ZREM', index, id) == 1
  sched.firsts[index] = nil
  if known and found then return true, known[2] == nil end
  return found, redis.call('EXISTS', index) == 0
end
