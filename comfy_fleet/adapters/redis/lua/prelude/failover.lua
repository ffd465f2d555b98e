-- A replica that was made the primary may lack the newest claims, take-overs and ends.

local DEAF_S = 10  -- a process may wait for so long for an answer of the server that is gone

-- Notice that this server was promoted since somebody last asked: no fencing token counts any more, and all runs are taken over
-- anew, after a time in which their dispatchers hear of it.  Returns for how many seconds yet nothing may be claimed, or nil.
local function failover_pause(at, ttl_s)
  local about = redis.pcall('INFO', 'replication')
  local id = type(about) == 'string' and string.match(about, 'master_replid:(%x+)')
  if not id then return nil end
  local f = fields(server_key, 'id', 'until')
  if f[1] ~= id then
    redis.call('HSET', cleared(server_key, 'hash'), 'id', id)
    -- It has a second id if it went on from another server's data. One that has read its own append-only file has none.
    if string.find(about, 'master_replid2:0*[1-9a-f]') and (f[1] or redis.call('EXISTS', runs_key) == 1) then
      f[2] = num(at + ttl_s + DEAF_S)
      redis.call('HSET', server_key, 'until', f[2])
      for _, run in ipairs(redis.call('ZRANGE', runs_key, 0, -1)) do
        redis.call('HSET', run_key(run), 'token', '')
        redis.call('ZADD', runs_key, num(at + ttl_s), run)
      end
    end
  end
  local left = (tonumber(f[2] or '') or at) - at
  return left > 0 and left or nil
end
