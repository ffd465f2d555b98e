-- What several scripts do.  A script is sent with those parts that it uses, each of which ends at an empty line.
--
-- Before them come SCHEMA, RQ_NAME and WORKER_PREFIX. A NAME_key stands for each key of keys.py: a text, or a function of
-- what it belongs to.

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

-- Fields of a record.  If the key has another type, which somebody else put there, there is no record.
local function fields(key, ...)
  local found = redis.pcall('HMGET', key, ...)
  return found.err and {} or found
end

-- The fleet's time goes on without steps: it is the server's, plus what steps have taken from it. Each second processes tell how
-- much time has passed by their own clocks (clock.lua). If the server's goes back, or is further than UNTOLD_S beyond what they
-- told, the fleet's stands still until one of them tells: that time has passed, or that it was a step. It never goes back because
-- nobody has told for a while, as on a machine that is too busy.
local STEP_S = 2
local UNTOLD_S = 3

-- The server's time, what is added to it, and its time when a process told last, or nil.
local function server_times()
  local t, f = redis.call('TIME'), fields(clock_key, 'shift', 'seen')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000, tonumber(f[1] or '') or 0, tonumber(f[2] or '')
end

local function now()
  local raw, shift, seen = server_times()
  return (seen and math.max(seen, math.min(raw, seen + UNTOLD_S)) or raw) + shift
end

local function num(x) return string.format('%.6f', x) end

-- A table's names and values, one after the other.
local function flat(named)
  local out = {}
  for name, value in pairs(named) do out[#out + 1] = name; out[#out + 1] = value end
  return out
end

-- Go on in a full Redis: whether there is room it asks only before a script's first write, and not if that only takes something away.
local function despite_full() redis.call('DEL', ready_key) end

-- A key to be written next: a value of another type, which somebody else put there, is dropped.
local function cleared(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
  return key
end
