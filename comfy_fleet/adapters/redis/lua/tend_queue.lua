-- Put waiting jobs right: what was lost of their indexes, and what earlier versions beside this one do to them; and bring RQ's view
-- of them up to date.  One process of the fleet does so at a time.
-- args: every_ms (between two turns), goes_on (bool: the caller has the turn), most (jobs to look at; one that is put right
--       counts as ten), mirror (see rq_wanted).
-- Returns {'schema', layout} | {'ok', 0: that is all for now, 1: there are more jobs, 2: the same, and something was wrong}.
local other = other_schema()
if other then return other end
-- Where nothing is known to wait, it only reads: an idle fleet writes nothing.
if args.goes_on then
  redis.call('SET', queued_tended_key, '1', 'PX', args.every_ms)
elseif redis.call('EXISTS', queued_key, sched_count_key, queued_mended_key, queued_checked_key) > 0 and not redis.call('SET', queued_tended_key, '1', 'NX', 'PX', args.every_ms) then
  return { 'ok', 0 }
end
local left, at, met = args.most, now(), {}

-- Waiting jobs that wait no more: an earlier version has ended them.
local start = tonumber(sched_call('GET', queued_checked_key) or '') or 0
local ids, kept = sched_call('ZRANGE', queued_key, start, start + math.ceil(args.most / 5) - 1), 0
for _, id in ipairs(ids) do
  local f = fields(job_key(id), 'status', 'placement', 'owner')
  if f[1] ~= 'queued' or not f[2] or not f[3] then dequeue(id, f[2]) else kept = kept + 1 end
end
local next_start = #ids < math.ceil(args.most / 5) and 0 or start + kept
if next_start ~= start then redis.call('SET', queued_checked_key, next_start) end

-- Those of some jobs that wait and are missing in an index.  What is known of several is asked together: most miss nothing.
local function missing_of(ids)
  local groups, wanted, found = {}, {}, {}
  for _, id in ipairs(ids) do
    local f = fields(job_key(id), 'status', 'placement', 'owner', 'family', 'deadline', 'follows', 'tenant')
    -- A follower is in no queue.
    if f[1] == 'queued' and f[2] and f[3] and not f[6] and (tonumber(f[5] or '') or math.huge) > at then
      local F = f[4] or ''
      local name = f[2] .. '\t' .. f[3] .. '\t' .. F
      groups[name] = groups[name] or { C = f[2], O = f[3], F = F, T = f[7] or '', ids = {} }
      table.insert(groups[name].ids, id)
      wanted[#wanted + 1], met[f[2]] = id, true
    end
  end
  local function miss(index, some)
    for i, score in ipairs(sched_call('ZMSCORE', index, unpack(some))) do
      if not score then found[some[i]] = true end
    end
  end
  if wanted[1] then miss(queued_key, wanted) end
  for _, group in pairs(groups) do
    local C, O, F, T, some = group.C, group.O, group.F, group.T, group.ids
    miss(sched_jobs_key(C, O), some)
    miss(sched_loads_key(C, O, F), some)
    local late, turns, passed = {}, {}, sched_call('ZMSCORE', sched_late_key(C, O), unpack(some))
    for i, id in ipairs(some) do table.insert(passed[i] and late or turns, id) end
    local function has(index, member) return sched_call('ZSCORE', index, member) end
    local function listed(kind)
      if not has(sched_index_name(kind, sched_group(C, T), F), O) then return false end
      return T == '' and not sched_tenanted() or has(sched_index_name(kind, sched_group(C), F), '/' .. T)
    end
    if turns[1] then miss(sched_turns_key(C, O), turns) end
    if T ~= '' and not sched_tenanted() or not listed('owners') or not listed('family') or not sched_backlog(C, F)
      or (F ~= '' and not has(sched_pressure_key(C), F)) or (late[1] and not has(sched_passed_key(C), O))
      or (turns[1] and not listed('unpassed')) then
      found[some[1]] = true
      if late[1] then found[late[1]] = true end
      if turns[1] then found[turns[1]] = true end
    end
  end
  return found
end

-- Let a job wait in each index in which it is missing.
local function mend(id)
  local job = sched_job(id)
  if not job then return end
  sched_call('ZADD', queued_key, 'NX', sched_text(job.rank), id)
  sched_index(job, {})
end

-- All live jobs of all owners, in rounds: the next owners by SCAN's cursor, how many of their jobs were looked at, and
-- whether anything was wrong in this round (2) or the last one (1).
local cursor, place, wrong = string.match(sched_call('GET', queued_mended_key) or '', '^(%d+) (%d+) (%d)$')
cursor, place, wrong = cursor or '0', tonumber(place or 0), tonumber(wrong or 0)
local over = false
repeat
  local found, skipped = sched_call('HSCAN', numbers_key, cursor, 'COUNT', 100), place
  for i = 1, #found[2], 2 do
    local live = live_key(found[2][i])
    local size = skipped > 0 and redis.call('ZCARD', live) or 1
    if skipped >= size then
      skipped = skipped - size
    else
      repeat
        local some = redis.call('ZRANGE', live, skipped, skipped + math.min(32, math.ceil(left)) - 1)
        local missing = missing_of(some)
        for _, id in ipairs(some) do
          if left <= 0 then break end
          place, skipped, left = place + 1, skipped + 1, left - 1
          if missing[id] then
            mend(id)
            left, wrong = left - 9, 2
          end
        end
      until left <= 0 or #some < 32
      skipped = 0
    end
    left = left - 0.1
    if left <= 0 then break end
  end
  if left > 0 then
    cursor, place = found[1], 0
    over = cursor == '0'
  end
until over or left <= 0
if over then wrong = math.floor(wrong / 2) end
sched_flush()
if cursor == '0' and place == 0 and wrong == 0 then
  redis.call('DEL', queued_mended_key)
else
  redis.call('SET', queued_mended_key, cursor .. ' ' .. place .. ' ' .. wrong)
end

for C in pairs(met) do
  if left > -args.most then left = left - sched_count(C) / 10 end
end
for i, C in ipairs(sched_call('HKEYS', sched_count_key)) do
  if i > args.most then break end
  if redis.call('EXISTS', sched_owners_key(C), sched_owners_key(sched_group(C))) == 0 then sched_call('HDEL', sched_count_key, C) end
end
if not args.goes_on then
  rq_show(args.mirror)
  bounds_tend()
end
return { 'ok', wrong > 0 and 2 or over and 0 or 1 }
