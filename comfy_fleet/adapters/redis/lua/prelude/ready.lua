-- Leases held ready: idle nodes whose websocket a dispatcher keeps open for the next job.

local READY_S = 1.1  -- a holder that has not beaten for so long loses them

-- The run that a node's lease is held ready for, how long ago its holder has said so, and the holder; nil if there is none.
local function ready_lease(node, at)
  local run, said, holder = string.match(fields(ready_leases_key, node)[1] or '', '^(%S+) (%S+) (.*)$')
  if run then return run, at - (tonumber(said) or -math.huge), holder end
end

-- Whether a node may be held ready: the controller watches, HAProxy gives leases on it, and no run has it.
local function may_be_ready(node)
  local f = fields(node_key(node), 'verdict', 'cordoned')
  return redis.call('HEXISTS', nodes_key, node) == 1 and f[1] == 'up' and f[2] ~= '1'
    and redis.call('EXISTS', lease_key(node)) == 0 and redis.call('EXISTS', ready_watched_key) == 1
end

-- Whether a run that was drawn beforehand may begin on a node.
local function is_ready(node, run, at)
  local held, age = ready_lease(node, at)
  return held == run and age <= READY_S and may_be_ready(node)
end
