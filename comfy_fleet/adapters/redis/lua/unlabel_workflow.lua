-- Remove a label of a stored workflow, which is not `production`.
-- args: name, label, author, id (drawn for this call), most_history.
-- Returns {'schema', layout} | {'ok', 1 if it was there}
local other = other_schema()
if other then return other end
local name, label = args.name, args.label
if own_entry(name, args.id) then return { 'ok', 1 } end
local version = labeled(name, label)
if version == '' then return { 'ok', 0 } end
redis.call('HDEL', workflow_key(name), 'label ' .. label, 'by ' .. label, 'at ' .. label)
redis.call('LPUSH', workflow_history_key(name), cjson.encode({ id = args.id, at = num(now()), author = args.author,
  action = 'unlabeled', version = version, before = version, label = label, note = '' }))
redis.call('LTRIM', workflow_history_key(name), 0, args.most_history - 1)
return { 'ok', 1 }
