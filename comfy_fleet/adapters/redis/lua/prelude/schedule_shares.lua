-- Fair shares between owners, by one start tag each: what an owner has used, and by how much it was lifted in a queue.
-- Tenants get their shares first, and then the users of each: domain/schedule/tenants.py.  Both are members of groups: the users of
-- the default tenant of a queue (C itself), of another tenant (C\tTENANT), and a queue's tenants (C\t), whose names begin with `/`.
-- Where C and O stand alone, they are such a group and its member.

-- The group of a tenant's users in a queue; without a tenant, that of the tenants.
local function sched_group(C, T) return T == '' and C or C .. '\t' .. (T or '') end

-- Whether jobs of other tenants than the default one have come: then tenants' shares count.
local function sched_tenanted()
  if sched.tenanted == nil then sched.tenanted = redis.call('EXISTS', sched_tenanted_key) == 1 end
  return sched.tenanted
end

-- An index by tag of a group: `owners` (all that wait), `unpassed` or `family`.
local function sched_index_name(kind, G, F)
  if kind == 'owners' then return sched_owners_key(G) end
  if kind == 'unpassed' then return sched_unpassed_key(G) end
  return sched_family_key(G, F)
end

-- An owner's account.  bases: by how much it was lifted in queues, false where it was not; C: one that is needed.
local function sched_account(owner, C)
  local known = sched.accounts[owner]
  if not known then
    local queues, level = {}, C and string.match(C, '\t.*$') or ''
    for i, each in ipairs(sched.queues) do queues[i] = each .. level end
    if C and not queues[1] then queues = { C } end
    local names = { 'used', 'credit', 'active', 'present', 'weight' }
    for i, each in ipairs(queues) do names[5 + i] = '=' .. each end
    local f = sched_call('HMGET', sched_used_key(owner), unpack(names))
    known = { owner = owner, used = sched_number(f[1], 0), credit = sched_number(f[2], 0), active = sched_number(f[3], 0),
      present = sched_number(f[4], 0), weight = sched_number(f[5], 1), bases = {}, changed = {} }
    local weight = sched.weights[owner] or known.weight
    if weight ~= known.weight then sched.dirty[owner] = known end
    known.weight = weight > 0 and weight or 1
    for i, each in ipairs(queues) do known.bases[each] = sched_number(f[5 + i], false) end
    sched.accounts[owner] = known
  end
  if C and known.bases[C] == nil then
    known.bases[C] = sched_number(sched_call('HGET', sched_used_key(owner), '=' .. C), false)
  end
  return known
end

local function sched_set_base(account, C, base)
  account.bases[C], account.changed[C] = base, true
  sched.dirty[account.owner] = account
end

-- Set an owner's share; right before a job is added that says so.
local function sched_weigh(owner, weight)
  sched.weights[owner], sched.accounts[owner] = weight, nil
end

-- Nobody remembers an owner that neither waits, runs nor is ahead of a queue that it has left.
local function sched_forget_if_gone(account)
  if account.present > 0 then return end
  account.used, account.credit, account.active, account.present = 0, 0, 0, 0
  for C in pairs(account.bases) do account.bases[C] = false end
end

-- Write what has changed.
local function sched_flush()
  for owner, account in pairs(sched.dirty) do
    local key = sched_used_key(owner)
    if account.present <= 0 then
      redis.call('DEL', key)
    else
      local record = { 'used', sched_text(account.used), 'credit', sched_text(account.credit), 'active', account.active, 'present',
        account.present, 'weight', sched_text(account.weight) }
      for C in pairs(account.changed) do
        if account.bases[C] then
          record[#record + 1] = '=' .. C
          record[#record + 1] = sched_text(account.bases[C])
        else
          redis.call('HDEL', key, '=' .. C)
        end
      end
      sched_call('HSET', key, unpack(record))
      redis.call('EXPIRE', key, SCHED.KEPT_S)  -- who waits all the time never comes anew
      account.changed = {}
    end
  end
  sched.dirty = {}
end

-- Charge GPU time that is probably used.
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

-- The highest virtual times that nodes have seen in queues.
local function sched_read_clocks(queues)
  for i, clock in ipairs(sched_call('HMGET', sched_clock_key, unpack(queues))) do
    sched.clocks[queues[i]] = sched_number(clock, 0)
  end
end

local function sched_clock(C)
  if not sched.clocks[C] then sched_read_clocks({ C }) end
  return sched.clocks[C]
end

-- A node or an owner has seen these times in queues: {C = clock}.
local function sched_lift_clocks(seen)
  local record = {}
  for C, clock in pairs(seen) do
    if clock > sched_clock(C) then
      sched.clocks[C] = clock
      record[#record + 1] = C
      record[#record + 1] = sched_text(clock)
    end
  end
  if record[1] then sched_call('HSET', sched_clock_key, unpack(record)) end
end

-- The tag of an owner that waits.  If its base was lost, it gets that of who has just come, to be charged from there on.
local function sched_tag(C, O)
  local account = sched_account(O, C)
  if not account.bases[C] then
    account.active, account.present = account.active + 1, account.present + 1
    sched_set_base(account, C, math.max(0, sched_clock(C) - account.used))
  end
  return account.used + account.bases[C]
end

-- The tags by which owners are compared, the tenant's first.
local function sched_tags(C, O, T)
  return sched_tenanted() and sched_tag(sched_group(C), '/' .. T) or 0, sched_tag(sched_group(C, T), O)
end

-- A queue's virtual time: nobody who waits there has a lower tag.  And whether nobody waits.
local function sched_virtual(C)
  local first = sched_call('ZRANGE', sched_owners_key(C), 0, 0, 'WITHSCORES')
  local least = tonumber(first[2] or 0)
  return math.max(least < math.huge and least or 0, sched_clock(C)), not first[1]
end

-- An owner has bases in very many queues: some in which it does not wait are forgotten, as if they were new to it.
local function sched_drop_bases(account, C)
  for _, field in ipairs(sched_call('HRANDFIELD', sched_used_key(account.owner), SCHED.DROPPED)) do
    local other = string.match(field, '^=(.*)$')
    if other and other ~= C and account.changed[other] == nil
      and not sched_call('ZSCORE', sched_owners_key(other), account.owner) then
      sched_call('ZREM', sched_left_key(other), account.owner)
      account.present = account.present - 1
      sched_set_base(account, other, false)
    end
  end
end

-- An owner waits in a queue from now on.
local function sched_enter(C, O, virtual)
  local account = sched_account(O, C)
  local base = account.bases[C]
  if base then
    if sched_call('ZREM', sched_left_key(C), O) == 0 then  -- it waits already, but it was lost from the queue's owners
      account.active = math.max(0, account.active - 1)
    end
    account.present = account.present - 1
  end
  base = base or 0
  if account.active <= 0 and account.credit ~= 0 then  -- it is given back: no index has a tag that must not be lowered
    account.used, account.credit = math.max(0, account.used - account.credit), 0
  end
  account.present, account.active = account.present + 1, account.active + 1
  sched_set_base(account, C, math.max(base, virtual - account.used))
  if account.present > SCHED.BASES then sched_drop_bases(account, C) end
end

-- An owner waits in a queue no more; its base is kept while it is ahead of virtual time.  Returns whether nobody waits there.
local function sched_leave(C, O)
  local account, virtual, closed = sched_account(O, C), sched_virtual(C)
  local left, tag = sched_left_key(C), sched_tag(C, O)
  account.active, account.present = math.max(0, account.active - 1), account.present - 1
  sched.dirty[O] = account
  if tag > virtual then
    sched_call('ZADD', left, sched_text(tag), O)
    redis.call('EXPIRE', left, SCHED.KEPT_S)
    account.present = account.present + 1
  else
    sched_set_base(account, C, false)
    sched_forget_if_gone(account)
  end
  for _ = 1, 2 do  -- of those that have left before, virtual time has reached some
    local first = sched_call('ZRANGE', left, 0, 0, 'WITHSCORES')
    if not first[1] or tonumber(first[2]) > virtual then break end
    local other = sched_account(first[1], C)
    tag = other.used + (other.bases[C] or 0)
    if tag > virtual then
      redis.call('ZADD', left, sched_text(tag), first[1])
    else
      redis.call('ZREM', left, first[1])
      if other.bases[C] then other.present = other.present - 1 end
      sched_set_base(other, C, false)
      sched_forget_if_gone(other)
    end
  end
  if closed and redis.call('HLEN', sched_clock_key) > SCHED.CLOCKS then redis.call('HDEL', sched_clock_key, C) end
  return closed
end
