-- Compare what operators are told of with what they were told, and write a message for each change that has lasted.
-- args: facts {{thing, state, type (of the message for this state, or ''), steady_s (for which it must have lasted), data (as JSON)} ...},
--       usual (states of which a thing that is new needs no message), kind (things of this kind that are in no fact are forgotten),
--       url, receiver.
-- Returns how many messages were written.
local at, key, seen, count, usual = now(), cleared(webhook_told_key, 'hash'), {}, 0, {}
for _, state in ipairs(args.usual) do usual[state] = true end
for _, fact in ipairs(args.facts) do
  local thing, state, type, steady_s, data = unpack(fact)
  seen[thing] = true
  local had = redis.call('HGET', key, thing)
  local was, since, told = string.match(had or '', '^(%S+) (%S+) (%S+)$')
  if not was then was, since, told = state, num(at), usual[state] and state or '-' end
  if was ~= state then since = num(at) end
  if told ~= state and at - tonumber(since) >= steady_s then
    told = state
    if type ~= '' then
      local id = 'msg_' .. string.gsub(type, '%.', '_') .. '_' .. redis.sha1hex(thing .. num(at))
      webhook_put(id, { owner = '', type = type, at = num(at), url = args.url, receiver = args.receiver, data = data })
      count = count + 1
    end
  end
  local new = state .. ' ' .. since .. ' ' .. told
  if new ~= had then redis.call('HSET', key, thing, new) end
end
for _, thing in ipairs(redis.call('HKEYS', key)) do
  if not seen[thing] and string.sub(thing, 1, #args.kind + 1) == args.kind .. ' ' then redis.call('HDEL', key, thing) end
end
return count
