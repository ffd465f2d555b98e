-- The rules by which an idle node takes one of the jobs that were looked at for it: domain/schedule/choose.py.
-- A head: {job, order, lag, load_s, cost_s, warm, holders, wait_s, soonest_s, own_s, backlog_s, first}.

-- The job that has waited longest of some whose time is up, each load counted as waiting; some are better off elsewhere.
local function sched_urgent(heads, at)
  local best, least
  for _, head in ipairs(heads) do
    local overdue = head.job.overdue_at
    local left = head.soonest_s + (overdue and math.max(0, at - overdue) or 0)
    if head.warm or head.holders == 0 or left > head.load_s then
      local key = (overdue or 0) + head.load_s
      if not best or key < least or (key == least and head.order < best.order) then best, least = head, key end
    end
  end
  return best
end

-- A job, or the one that it must not pass, unless that is better off elsewhere; and the rule's name.
local function sched_in_order(head, rule, at)
  if head.first and sched_urgent({ head.first }, at) then return head.first, 'order' end
  return head, rule
end

-- Those of owners within the window.
local function sched_entitled(heads, window_s)
  local found = {}
  for _, head in ipairs(heads) do
    if head.lag <= window_s then found[#found + 1] = head end
  end
  return found
end

-- The warm job of the owner that has had least.
local function sched_warmest(heads, at)
  local best, least
  for _, head in ipairs(heads) do
    if head.warm then
      local key = head.lag + head.load_s
      if not best or key < least or (key == least and head.order < best.order) then best, least = head, key end
    end
  end
  if best then return sched_in_order(best, 'warm', at) end
end

-- The job with the most seconds for each second of its load.
local function sched_longest(heads, rule, at, seconds)
  local best, most
  for _, head in ipairs(heads) do
    local value = seconds(head)
    if value then
      local key = value / head.load_s
      if not best or key > most or (key == most and head.order < best.order) then best, most = head, key end
    end
  end
  if best then return sched_in_order(best, rule, at) end
end

-- What is taken whatever else there is: an overdue job, else a warm one.
local function sched_choose_first(heads, window_s, at)
  local overdue = {}
  for _, head in ipairs(heads) do
    local due = head.job.overdue_at
    if due and due <= at and head.lag <= math.max(window_s, head.cost_s) then overdue[#overdue + 1] = head end
  end
  local found = sched_urgent(overdue, at)
  if found then return found, 'overdue' end
  return sched_warmest(sched_entitled(heads, window_s), at)
end

-- What is taken if there is nothing to be taken first; nil: the node does better to wait.
local function sched_choose_next(heads, window_s, at)
  local entitled = sched_entitled(heads, window_s)
  local function unheld(head) return not head.warm and head.holders == 0 and head.backlog_s end
  local function share(head) return head.holders > 0 and head.own_s > 2 * head.load_s and head.own_s end
  local function worth(head) return head.holders > 0 and head.wait_s > 1.25 * head.load_s and head.wait_s end
  local found, rule = sched_longest(entitled, 'unheld', at, unheld)
  if not found then found, rule = sched_longest(entitled, 'share', at, share) end
  if not found then found, rule = sched_warmest(heads, at) end
  if not found then found, rule = sched_longest(heads, 'unheld', at, unheld) end
  if not found then found, rule = sched_longest(heads, 'backlog', at, worth) end
  return found, rule
end
