-- Nodes that hold a model family: those with its file on their cards, by pool.

-- The pools whose nodes serve a queue, as it names them; of `*` the first eight.
local function sched_pools_of(C)
  local known = sched.pools[C]
  if known then return known end
  known = {}
  local seen = {}
  local function add(pool)
    if not seen[pool] and #known < 8 then
      seen[pool] = true
      known[#known + 1] = pool
    end
  end
  for pool in string.gmatch(string.match(C, '^[^:]*'), '[^>]+') do
    if pool == '*' then
      local all = sched_call('SMEMBERS', sched_pools_key)
      table.sort(all)
      for _, each in ipairs(all) do add(each) end
    else
      add(pool)
    end
  end
  sched.pools[C] = known
  return known
end

-- How many nodes that serve a queue hold a family.
local function sched_holder_count(C, F)
  local count = 0
  for _, pool in ipairs(sched_pools_of(C)) do
    local key = sched_holders_key(pool, F)
    local found = sched.holders[key]
    if not found then
      found = sched_call('ZCARD', key)
      sched.holders[key] = found
    end
    count = count + found
  end
  return count
end

-- When a node that holds a family is free, or that it holds it no more (no time).
local function sched_list_holder(pool, F, node, free_at)
  local key = sched_holders_key(pool, F)
  sched.holders[key] = nil
  if free_at then
    sched_call('ZADD', key, sched_text(free_at), node)
  else
    sched_call('ZREM', key, node)
  end
end
