-- Nodes: what is in their memory, their restarts, and which of them are one ComfyUI.

-- A node no longer has what nodes that are alike share; nobody has it, perhaps.
local function forget_shared(key, whose, node)
  redis.call('SREM', whose, node)
  if redis.call('EXISTS', whose) == 0 then redis.call('DEL', key) end
end

-- Nothing is in a node's memory any more: it has started, was freed, or ran out of memory.
local function unloaded(node)
  sched_cold(node)
  redis.call('DEL', node_models_key(node))
  redis.call('HDEL', node_key(node), 'results')
end

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
  sched_off(node)
  redis.call('PUBLISH', wake_nodes_key, 'nodes')
end

-- A node is removed or moves: those that got no jobs because they are the same ComfyUI may get some.
local function free_twins(node)
  for _, name in ipairs(redis.call('HKEYS', nodes_key)) do
    local key = node_key(name)
    if redis.call('HGET', key, 'twin') == node then
      redis.call('HSET', key, 'cordoned', 0, 'cordon_reason', '')
      redis.call('HDEL', key, 'twin')
      if redis.call('HGET', key, 'verdict') == 'up' then sched_on(name) end
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
