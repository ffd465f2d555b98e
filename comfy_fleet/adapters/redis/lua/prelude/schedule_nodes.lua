-- What a node has on its card and in its memory, what loading takes there, and when it is free.

-- Files of one level, {{file, bytes}, ...}, the one that was used last at the end.
local function sched_level(text)
  local level = { files = sched_files(text), has = {}, bytes = 0 }
  for _, file in ipairs(level.files) do
    level.has[file[1]] = true
    level.bytes = level.bytes + file[2]
  end
  return level
end

-- Use a file: it is the last to leave the level.
local function sched_touch(level, name, size)
  local files = level.files
  if level.has[name] then
    for i = #files, 1, -1 do
      if files[i][1] == name then
        local file = table.remove(files, i)
        files[#files + 1] = file
        return
      end
    end
  end
  level.has[name] = true
  level.bytes = level.bytes + size
  files[#files + 1] = { name, size }
end

-- The file that was used longest ago leaves a level.
local function sched_evict(level)
  local file = table.remove(level.files, 1)
  level.has[file[1]] = nil
  level.bytes = level.bytes - file[2]
  return file[1]
end

-- A node as it was left: {name, pool, clocks (by level, see sched_see_clocks), passes_until, free_at, run, off, set, held, holds}.  What is on its card is
-- read when it is needed: not while it runs one set of models.
local function sched_node(name)
  local f = fields(sched_node_key(name), 'pool', 'clock', 'passes_until', 'free_at', 'run', 'off', 'set', 'held')
  local node = { name = name, pool = f[1], clocks = { [''] = sched_number(f[2], 0) }, passes_until = sched_number(f[3], 0),
    free_at = sched_number(f[4], SCHED.IDLE), run = f[5], off = f[6] == '1', set = f[7], held = {},
    holds = {} }
  for _, family in ipairs(sched_list(f[8])) do
    if type(family) == 'string' then
      node.held[#node.held + 1] = family
      node.holds[family] = true
    end
  end
  return node
end

-- Read what is on a node's card and in its memory, and its rates.
local function sched_levels(node)
  if node.card then return node end
  local f = fields(sched_node_key(node.name), 'card', 'memory', 'disk_rate', 'ram_rate')
  node.card, node.memory = sched_level(f[1]), sched_level(f[2])
  node.disk_rate = math.max(sched_number(f[3], 2 * SCHED.GIB), 1)
  node.ram_rate = math.max(sched_number(f[4], 12 * SCHED.GIB), 1)
  return node
end

-- How long it takes to bring a job's models onto a node's card, in seconds.  Its last set is there.
local function sched_load_s(node, job)
  if not job.set or job.set == node.set then return 0 end
  sched_levels(node)
  local seconds, card, memory = 0, node.card.has, node.memory.has
  for _, file in ipairs(sched_set(job.set).files) do
    if not card[file[1]] then seconds = seconds + file[2] / (memory[file[1]] and node.ram_rate or node.disk_rate) end
  end
  return seconds
end

-- Bytes of a job's models that come from the disk, and from memory.
local function sched_missing(node, job)
  local disk, memory = 0, 0
  for _, file in ipairs(sched_set(job.set).files) do
    if not node.card.has[file[1]] then
      if node.memory.has[file[1]] then memory = memory + file[2] else disk = disk + file[2] end
    end
  end
  return disk, memory
end

-- Whether next to nothing is to be loaded for a job.
local function sched_warm(node, job, load_s)
  if load_s <= 0 then return true end
  return node.card.has[job.family] == true and load_s <= 0.25 * (sched_set(job.set).size / node.disk_rate)
end

-- A run uses a set, nothing else stays on the card.  Returns the files that have left it.
local function sched_use(node, files, ram)
  local card, memory, gone = sched_levels(node).card, node.memory, {}
  for _, file in ipairs(files) do
    sched_touch(card, file[1], file[2])
    sched_touch(memory, file[1], file[2])
  end
  while #card.files > #files do gone[#gone + 1] = sched_evict(card) end
  while (memory.bytes > ram or #memory.files > SCHED.FILES) and #memory.files > 0 do sched_evict(memory) end
  return gone
end

-- List a node by the time when it is free, wherever it holds a family.
local function sched_list_node(node)
  for _, family in ipairs(node.held) do sched_list_holder(node.pool, family, node.name, node.free_at) end
end

local function sched_let_go(node, family)
  for i, held in ipairs(node.held) do
    if held == family then table.remove(node.held, i) end
  end
  node.holds[family] = nil
  if node.pool then sched_list_holder(node.pool, family, node.name, nil) end
end

-- A node's facts that may have changed since the last look: its pool, and that it takes jobs again.
local function sched_show_node(node, pool)
  if node.pool == pool and not node.off then return end
  if node.pool and node.pool ~= pool then
    for _, family in ipairs(node.held) do sched_list_holder(node.pool, family, node.name, nil) end
  end
  node.pool, node.off = pool, false
  sched_call('SADD', sched_pools_key, pool)
  sched_call('HSET', sched_node_key(node.name), 'pool', pool, 'off', 0)
  sched_list_node(node)
end

-- A node holds families no more.  Only queues with jobs have places to mend; of many the rest is mended when it is read.
local function sched_unlist(node)
  for _, family in ipairs(node.held) do
    if node.pool then sched_list_holder(node.pool, family, node.name, nil) end
  end
  if #node.held == 0 then return end
  for i, C in ipairs(sched_call('HKEYS', sched_count_key)) do
    if i > SCHED.PRESSED then break end
    for j, found in ipairs(sched_call('HMGET', sched_backlog_key(C), unpack(node.held))) do
      if found then sched_press(C, node.held[j]) end
    end
  end
end

-- Nothing is on a node's card or in its memory any more: it has started, was freed, ran out of memory or was removed.
local function sched_cold(name)
  sched_unlist(sched_node(name))
  sched_call('HDEL', sched_node_key(name), 'card', 'memory', 'held', 'set', 'passes_until',
    'free_at', 'run')
end

-- A node takes no jobs until it looks for one; what it has on its card stays there.
local function sched_off(name)
  local node = sched_node(name)
  if node.off or not node.pool then return end
  sched_unlist(node)
  sched_call('HSET', sched_node_key(name), 'off', 1)
end

-- A node takes jobs again: it holds what it has on its card.
local function sched_on(name)
  local node = sched_node(name)
  if node.pool and node.off then sched_show_node(node, node.pool) end
end

-- Correct a node's rates by a load that was measured.
local function sched_measured(name, disk, memory, load_s)
  if redis.call('EXISTS', sched_node_key(name)) == 0 then return end
  local node = sched_levels({ name = name })
  local expected = disk / node.disk_rate + memory / node.ram_rate
  if expected <= 0 or load_s <= 0 then return end
  local factor = math.min(4, math.max(0.25, expected / load_s))
  if disk > 0 then
    sched_call('HSET', sched_node_key(name), 'disk_rate', sched_text(node.disk_rate * (1 + 0.3 * (factor - 1))))
  else
    sched_call('HSET', sched_node_key(name), 'ram_rate', sched_text(node.ram_rate * (1 + 0.3 * (factor - 1))))
  end
end
