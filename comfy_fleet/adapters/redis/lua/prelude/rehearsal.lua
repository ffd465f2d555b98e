-- Rehearse a script: what it writes only this call reads, and Redis stays as it is.  Knows the commands that choosing uses; any
-- other is refused.  This part comes before all others, so that `redis` means this one there, too.
local redis, rehearsal = (function(server)
  local scores, values, gone = {}, {}, {}  -- KEY -> MEMBER or FIELD -> what was written, false if it was taken away; KEY -> true
  local NOTHING = { ZRANGE = {}, ZSCORE = false, ZCARD = 0, HGET = false, HEXISTS = 0, HKEYS = {}, HLEN = 0, HRANDFIELD = {}, GET = false,
    EXISTS = 0, SMEMBERS = {}, SRANDMEMBER = false, SCARD = 0, TYPE = { ok = 'none' } }
  local function ask(command, key, ...)
    if not gone[key] then return server.call(command, key, ...) end
    if command ~= 'HMGET' then return NOTHING[command] end
    local found = {}
    for i = 1, select('#', ...) do found[i] = false end
    return found
  end
  local function one(kept, key, name, command)
    local written = kept[key] and kept[key][name]
    if written ~= nil then return written end
    return ask(command, key, name)
  end
  local function put(kept, key, name, value)
    kept[key] = kept[key] or {}
    kept[key][name] = value
  end
  local function count(kept, key, command, whole)  -- how many there are after what was written
    local sum = ask(whole, key)
    for name, value in pairs(kept[key] or {}) do
      sum = sum + (value and 1 or 0) - (ask(command, key, name) and 1 or 0)
    end
    return sum
  end
  local R = {}
  function R.ZRANGE(key, first, last, ...)
    local written, more, with = scores[key], 0, ...
    if not written then return ask('ZRANGE', key, first, last, ...) end
    for _ in pairs(written) do more = more + 1 end
    local listed, found = {}, ask('ZRANGE', key, 0, last + more, 'WITHSCORES')
    for i = 1, #found, 2 do
      if written[found[i]] == nil then listed[#listed + 1] = { found[i], found[i + 1] } end
    end
    for member, score in pairs(written) do
      if score then listed[#listed + 1] = { member, score } end
    end
    table.sort(listed, function(a, b)
      local x, y = tonumber(a[2]), tonumber(b[2])
      return x < y or (x == y and a[1] < b[1])
    end)
    local out = {}
    for i = first + 1, math.min(last + 1, #listed) do
      out[#out + 1] = listed[i][1]
      if with then out[#out + 1] = listed[i][2] end
    end
    return out
  end
  function R.ZSCORE(key, member) return one(scores, key, member, 'ZSCORE') end
  function R.ZCARD(key) return count(scores, key, 'ZSCORE', 'ZCARD') end
  local HOW = { NX = true, XX = true, GT = true, LT = true, CH = true }
  function R.ZADD(key, ...)
    local pairs_, how, added, changed = { ... }, {}, 0, 0
    while HOW[pairs_[1]] do how[table.remove(pairs_, 1)] = true end
    for i = 1, #pairs_, 2 do
      local member, score = pairs_[i + 1], tostring(pairs_[i])
      local old = R.ZSCORE(key, member)
      local by = old and tonumber(score) - tonumber(old)
      if not (how.NX and old or how.XX and not old or how.GT and old and by <= 0 or how.LT and old and by >= 0) then
        put(scores, key, member, score)
        if not old then added = added + 1 end
        if by ~= 0 then changed = changed + 1 end
      end
    end
    return how.CH and changed or added
  end
  function R.ZREM(key, ...)
    local removed = 0
    for _, member in ipairs({ ... }) do
      if R.ZSCORE(key, member) then removed = removed + 1 end
      put(scores, key, member, false)
    end
    return removed
  end
  function R.HGET(key, field) return one(values, key, field, 'HGET') end
  function R.HMGET(key, ...)
    local found, written = ask('HMGET', key, ...), values[key] or {}
    for i, field in ipairs({ ... }) do
      if written[field] ~= nil then found[i] = written[field] end
    end
    return found
  end
  function R.HLEN(key) return count(values, key, 'HGET', 'HLEN') end
  function R.HSET(key, ...)
    local named = { ... }
    for i = 1, #named, 2 do put(values, key, named[i], tostring(named[i + 1])) end
    return #named / 2
  end
  function R.HDEL(key, ...)
    for _, field in ipairs({ ... }) do put(values, key, field, false) end
    return select('#', ...)
  end
  function R.HINCRBY(key, field, by)
    local sum = (tonumber(R.HGET(key, field) or 0) or 0) + by
    put(values, key, field, tostring(sum))
    return sum
  end
  function R.EXISTS(key)
    if scores[key] then return R.ZCARD(key) > 0 and 1 or 0 end
    return ask('EXISTS', key)
  end
  function R.DEL(key)
    scores[key], values[key], gone[key] = nil, nil, true
    return 1
  end
  local function done() return 1 end  -- written, and never read in the same call
  for _, name in ipairs({ 'SADD', 'SREM', 'EXPIRE', 'PUBLISH' }) do R[name] = done end
  for _, name in ipairs({ 'HEXISTS', 'HKEYS', 'HRANDFIELD', 'GET', 'SMEMBERS', 'SRANDMEMBER', 'SCARD', 'TYPE' }) do
    R[name] = function(key, ...) return ask(name, key, ...) end
  end
  function R.TIME() return server.call('TIME') end
  local function call(command, ...) return (R[command] or error('not rehearsed: ' .. command))(...) end
  local function try(...)
    local ok, found = pcall(call, ...)
    if ok then return found end
    return type(found) == 'table' and found or { err = tostring(found) }
  end
  return { call = call, pcall = try, sha1hex = server.sha1hex }, true
end)(redis)
