-- Take entries out of the inbox: from now on they are in our own records, whatever becomes of RQ's list.
-- args: holder (the caller), hold_ms (for how long it has the turn), ids (for the jobs of new entries, one each; nil: none are taken now),
--       most_data (bytes).
-- Returns {'schema', layout} | {'other'}: another process has the turn | {'idle'}: there is nothing to do
--         | {'ok', new entries, dropped {id, why}, entries {id, job, too long a field or '', INBOX_FIELDS}}.
local MOST_BYTES = 4194304  -- of one answer
local MOST_LISTED = 262144  -- bytes of ids that are looked at

local other = other_schema()
if other then return other end
local turn = redis.pcall('GET', inbox_turn_key)
if turn and turn ~= args.holder and type(turn) == 'string' then return { 'other' } end
if redis.call('EXISTS', inbox_taken_key, inbox_live_key, inbox_changed_key) == 0
  and not (args.ids and redis.call('EXISTS', rq_inbox_key, rq_inbox_scheduled_key) > 0) then
  return { 'idle' }
end
redis.call('SET', inbox_turn_key, args.holder, 'PX', args.hold_ms)
local at = now()

-- What RQ's clients have scheduled, and is due.
local due = args.ids and redis.call('ZRANGEBYSCORE', cleared(rq_inbox_scheduled_key, 'zset'), '-inf', num(at), 'LIMIT', 0, 50) or {}
for _, id in ipairs(due) do
  redis.call('ZREM', rq_inbox_scheduled_key, id)
  if inbox_id(id) and inbox_recorded(id) then
    redis.call('HSET', rq_job_key(id), 'status', 'queued', 'enqueued_at', iso(at))
    redis.call('RPUSH', cleared(rq_inbox_key, 'list'), id)
  end
end

local listed, bytes, from = {}, 0, 0
if args.ids then cleared(rq_inbox_key, 'list') end
while args.ids and #listed < INBOX_SHOWN + 100 and bytes < MOST_LISTED do
  local some = redis.call('LRANGE', rq_inbox_key, from, from + 24)
  if #some == 0 then break end
  from = from + #some
  for _, id in ipairs(some) do listed[#listed + 1] = id; bytes = bytes + #id end
end
local kept, shown, seen, dropped, new = {}, 0, {}, {}, 0
local function drop(id, why) dropped[#dropped + 1] = { string.sub(id, 1, 100), why } end
for _, id in ipairs(listed) do
  local known = inbox_id(id) and fields(inbox_job_key(id), 'state', 'running', 'created')
  if not known then
    drop(id, 'it is no id of RQ\'s')
  elseif known[1] then
    if seen[id] then
      -- once is enough
    elseif not known[2] and shown < INBOX_SHOWN then
      shown = shown + 1
      kept[#kept + 1] = id
    elseif inbox_recorded(id) and not inbox_same(id, known[3]) then
      kept[#kept + 1] = id  -- another entry by the same name waits until the first one has ended
    end
  elseif redis.call('EXISTS', job_key(id)) == 1 then
    drop(id, 'it is the id of another job, which did not come from RQ')
  elseif not inbox_recorded(id) then
    drop(id, 'RQ has no record of it')
  elseif new >= #args.ids then
    kept[#kept + 1] = id
  else
    local status = inbox_value(id, 'status', 32)
    if status == 'queued' or status == '' or status == 'created' then
      new = new + 1
      redis.call('HSET', inbox_job_key(id), 'state', 'taken', 'job', args.ids[new], 'created', inbox_value(id, 'created_at', 64) or '')
      redis.call('ZADD', inbox_taken_key, num(at + new / 1000000), id)
      redis.call('PERSIST', rq_job_key(id))
      if shown < INBOX_SHOWN then
        shown = shown + 1
        kept[#kept + 1] = id
      end
    else
      drop(id, 'its status is ' .. (status or 'unknown'))
    end
  end
  seen[id] = true
end
if #kept < #listed then
  redis.call('LTRIM', rq_inbox_key, #listed, -1)
  for i = #kept, 1, -1 do redis.call('LPUSH', rq_inbox_key, kept[i]) end
end

local rows, size = {}, 0
for _, id in ipairs(redis.call('ZRANGE', inbox_taken_key, 0, 99)) do
  if size > MOST_BYTES then break end
  local link = fields(inbox_job_key(id), 'job', 'created')
  local status = link[1] and inbox_same(id, link[2]) and inbox_value(id, 'status', 32)
  if not status or status == 'canceled' or status == 'stopped' then
    inbox_drop(id)  -- its client has deleted or canceled it, or has sent another one by its name
  else
    local values, long = inbox_values(id, args.most_data)
    size = size + #values[1] + #values[2]
    rows[#rows + 1] = { id, link[1], long, unpack(values) }
  end
end
return { 'ok', new, dropped, rows }
