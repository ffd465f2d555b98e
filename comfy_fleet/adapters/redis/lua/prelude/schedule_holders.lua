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
      for _, each in ipairs(all) do
        if #known == 8 then break end
        if redis.call('EXISTS', pool_nodes_key(each)) == 1 then
          add(each)
        else
          redis.call('SREM', sched_pools_key, each)  -- its last node was removed
        end
      end
    else
      add(pool)
    end
  end
  sched.pools[C] = known
  return known
end

-- Of the nodes of a pool that hold a family, those that can run a queue's jobs, where the caller has said which can: as ZRANGE
-- says it, the one that is free first before the others.  Beyond the first 16 none is looked at.
local function sched_able_holders(C, key)
  local listed = sched.able_holders[key]
  if not listed then
    listed = sched_call('ZRANGE', key, 0, SCHED.LISTED - 1, 'WITHSCORES')
    sched.able_holders[key] = listed
  end
  local able, found = sched.able[C], {}
  for i = 1, #listed, 2 do
    if able[listed[i]] then
      found[#found + 1] = listed[i]
      found[#found + 1] = listed[i + 1]
    end
  end
  return found
end

-- How many nodes that serve a queue hold a family.
local function sched_holder_count(C, F)
  local count = 0
  for _, pool in ipairs(sched_pools_of(C)) do
    local key = sched_holders_key(pool, F)
    local able = sched.able[C] and #sched_able_holders(C, key) / 2
    -- How many are beyond those that were looked at is known only if nearly all are able.
    local more = able and sched.unable[C] and #sched.able_holders[key] == 2 * SCHED.LISTED
    if more or not able then
      local found = sched.holders[key]
      if not found then
        found = sched_call('ZCARD', key)
        sched.holders[key] = found
      end
      able = more and math.max(able, found - sched.unable[C]) or found
    end
    count = count + able
  end
  return count
end

-- When a node that holds a family is free, or that it holds it no more (no time).
local function sched_list_holder(pool, F, node, free_at)
  local key = sched_holders_key(pool, F)
  sched.holders[key], sched.able_holders[key] = nil, nil
  if free_at then
    sched_call('ZADD', key, sched_text(free_at), node)
  else
    sched_call('ZREM', key, node)
  end
end
