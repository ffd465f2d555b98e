-- Fair shares between owners, by one start tag each: what an owner has used, and by how much it was lifted in a queue.

local function sched_account(owner)
  local known = sched.accounts[owner]
  if known then return known end
  local f = sched_call('HMGET', sched_used_key(owner), 'used', 'credit', 'active', 'present', 'weight')
  known = { owner = owner, used = sched_number(f[1], 0), credit = sched_number(f[2], 0), active = sched_number(f[3], 0),
    present = sched_number(f[4], 0), weight = sched_number(f[5], 1) }
  if known.weight <= 0 then known.weight = 1 end
  sched.accounts[owner] = known
  return known
end

-- Set an owner's share; before the job is added that says so.
local function sched_weigh(owner, weight)
  local account = sched_account(owner)
  if weight > 0 and weight ~= account.weight then
    account.weight = weight
    sched.dirty[owner] = account
  end
end

-- Nobody remembers an owner that neither waits, runs nor has left a queue's time behind.
local function sched_forget_if_gone(account)
  if account.present <= 0 then
    account.used, account.credit, account.active, account.present = 0, 0, 0, 0
  end
end

-- Write what has changed.
local function sched_flush()
  for owner, account in pairs(sched.dirty) do
    if account.present <= 0 then
      redis.call('DEL', sched_used_key(owner))
    else
      sched_call('HSET', sched_used_key(owner), 'used', sched_text(account.used), 'credit', sched_text(account.credit),
        'active', account.active, 'present', account.present, 'weight', sched_text(account.weight))
      if account.entered then redis.call('EXPIRE', sched_used_key(owner), SCHED.KEPT_S) end
    end
  end
  sched.dirty = {}
end

local function sched_charge(account, seconds)
  local due = seconds / account.weight
  if account.credit ~= 0 then
    local paid = math.min(account.credit, due)
    account.credit = account.credit - paid
    due = due - paid
  end
  account.used = account.used + due
  sched.dirty[account.owner] = account
end

-- By how much an owner was lifted in a queue, or false.
local function sched_base(C, O)
  local bases = sched.bases[C]
  if not bases then
    bases = {}
    sched.bases[C] = bases
  end
  if bases[O] == nil then
    local f = sched_call('HMGET', sched_base_key(C), '=' .. O, 'clock')
    bases[O] = sched_number(f[1], false)
    sched.clocks[C] = sched.clocks[C] or sched_number(f[2], 0)
  end
  return bases[O]
end

local function sched_tag(C, O)
  local used, base = sched_account(O).used, sched_base(C, O)
  return used + (base or math.max(0, sched.clocks[C] - used))  -- one that was lost is like that of one who has just come
end

-- The highest virtual time that nodes have seen in a queue.
local function sched_clock(C)
  if not sched.clocks[C] then sched.clocks[C] = sched_number(sched_call('HGET', sched_base_key(C), 'clock'), 0) end
  return sched.clocks[C]
end

local function sched_lift_clock(C, clock)
  if clock > sched_clock(C) then
    sched.clocks[C] = clock
    sched_call('HSET', sched_base_key(C), 'clock', sched_text(clock))
  end
end

-- A queue's virtual time: nobody who waits there has a lower tag.
local function sched_virtual(C)
  local first = sched_call('ZRANGE', sched_owners_key(C), 0, 0, 'WITHSCORES')
  return math.max(tonumber(first[2] or 0), sched_clock(C))
end

-- An owner waits in a queue from now on.
local function sched_enter(C, O, virtual)
  local account, base = sched_account(O), sched_base(C, O)
  if base then
    sched_call('ZREM', sched_left_key(C), O)
    account.present = account.present - 1
  end
  base = base or 0
  if account.active <= 0 and account.credit ~= 0 then
    account.credit = math.min(account.credit, math.max(0, account.used + base - virtual))
  end
  account.present, account.active, account.entered = account.present + 1, account.active + 1, true
  sched.dirty[O] = account
  base = math.max(base, virtual - account.used)
  sched.bases[C][O] = base
  sched_call('HSET', sched_base_key(C), '=' .. O, sched_text(base))
  redis.call('EXPIRE', sched_base_key(C), SCHED.KEPT_S)
end

local function sched_drop_base(C, O)
  sched_call('HDEL', sched_base_key(C), '=' .. O)
  sched.bases[C][O] = false
end

-- An owner waits in a queue no more; its base is kept while it is ahead of virtual time.
local function sched_leave(C, O)
  local account, base, virtual = sched_account(O), sched_base(C, O) or 0, sched_virtual(C)
  local left = sched_left_key(C)
  account.active, account.present = math.max(0, account.active - 1), account.present - 1
  sched.dirty[O] = account
  if account.used + base > virtual then
    sched_call('ZADD', left, sched_text(account.used + base), O)
    redis.call('EXPIRE', left, SCHED.KEPT_S)
    account.present = account.present + 1
  else
    sched_drop_base(C, O)
    sched_forget_if_gone(account)
  end
  for _ = 1, 2 do  -- of those that have left before, virtual time has reached some
    local first = sched_call('ZRANGE', left, 0, 0, 'WITHSCORES')
    if not first[1] or tonumber(first[2]) > virtual then break end
    local tag = sched_tag(C, first[1])
    if tag > virtual then
      redis.call('ZADD', left, sched_text(tag), first[1])
    else
      local other = sched_account(first[1])
      redis.call('ZREM', left, first[1])
      sched_drop_base(C, first[1])
      other.present = other.present - 1
      sched.dirty[first[1]] = other
      sched_forget_if_gone(other)
    end
  end
end
