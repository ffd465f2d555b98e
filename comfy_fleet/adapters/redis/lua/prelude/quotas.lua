-- Limits of roles, keys and tenants: domain/limits.py makes what is checked here.
-- quota: windows [{scope, subject, count, seconds, shown}], amounts [{scope, name, most, owners}].

-- Items of an owner's batches that are in no queue yet.
local function to_be_queued(owner) return tonumber(redis.call('HGET', batches_waiting_key, owner) or '') or 0 end

-- What some owners have together of what a limit is about.
local function used_of(name, owners)
  local used = 0
  for _, owner in ipairs(owners) do
    if name == 'queued' then
      used = used + redis.call('ZCARD', listed_key(owner, 'pending')) + to_be_queued(owner)
    elseif name == 'live' then
      used = used + redis.call('ZCARD', live_key(owner)) + to_be_queued(owner)
    else
      used = used + (tonumber(redis.call('HGET', stored_bytes_key, owner) or 0) or 0)
        + (tonumber(redis.call('HGET', uploads_bytes_key, owner) or 0) or 0)
    end
  end
  return used
end

-- What keeps another job, of so many that wait from now on, or so many bytes from being taken; nil if nothing does.
-- Returns {'limit', its name, scope, most, used, the window's text or '', seconds until there is room again or ''}.
local function over_quota(quota, at, jobs, bytes)
  for _, w in ipairs(quota.windows or {}) do
    local key = submit_times_key(w.scope, w.subject, w.shown)
    -- The time of the submit that is as many back as there may be.
    local oldest = tonumber(redis.call('LINDEX', key, w.count - 1) or '')
    local newest = tonumber(redis.call('LINDEX', key, 0) or '')
    if newest and newest > at + 1 then  -- the server's clock was set back
      redis.call('DEL', key)
    elseif oldest and at - oldest < w.seconds then
      return { 'limit', 'submits', w.scope, num(w.count), num(w.count), w.shown, num(oldest + w.seconds - at) }
    end
  end
  for _, a in ipairs(quota.amounts or {}) do
    local more = a.name == 'stored' and bytes or jobs
    local used = used_of(a.name, a.owners)
    local full = a.name == 'stored' and (used + more > a.most or used >= a.most) or (more > 0 and used + more > a.most)
    if full then return { 'limit', a.name, a.scope, num(a.most), num(used), '', '' } end
  end
end

-- Count a submit.
local function note_submit(quota, at)
  for _, w in ipairs(quota.windows or {}) do
    local key = submit_times_key(w.scope, w.subject, w.shown)
    redis.call('LPUSH', key, num(at))
    redis.call('LTRIM', key, 0, w.count - 1)
    redis.call('EXPIRE', key, math.ceil(w.seconds) + 1)
  end
end
