-- Make a label name a version.
-- args: name, label, from_label, digits (which version: what a label names, or the beginning of one), author, note,
--       expected (what the label must name until now; nil: anything), id (drawn for this call), most_labels, most_history.
-- Returns {'schema', layout} | {'ok', at, version, before, action} | {'none'} | {'many', how many} |
--         {'changed', what it names, by, at} | {'full'}
local other = other_schema()
if other then return other end
local name, label = args.name, args.label
if labeled(name, 'production') == '' then return { 'none' } end
local mine = own_entry(name, args.id)
if mine then return { 'ok', mine.at, mine.version, mine.before, mine.action } end
local found = versions_of(name, args.from_label, args.digits)
if #found == 0 then return { 'none' } end
if #found > 1 then return { 'many', #found } end
local before, version = labeled(name, label), found[1]
local f = redis.call('HMGET', workflow_key(name), 'by ' .. label, 'at ' .. label)
local action = label == 'production' and 'rolled_back' or 'labeled'
if before == version then return { 'ok', f[2] or '0', version, before, action } end
if args.expected and before ~= args.expected then return { 'changed', before, f[1] or '', f[2] or '0' } end
if before == '' then
  local count = 0
  for _, field in ipairs(redis.call('HKEYS', workflow_key(name))) do
    if string.sub(field, 1, 6) == 'label ' then count = count + 1 end
  end
  if count >= args.most_labels then return { 'full' } end
end
local at = num(now())
set_label(name, label, version, { id = args.id, at = at, author = args.author, action = action, version = version,
  before = before, label = label, note = args.note }, args.most_history)
return { 'ok', at, version, before, action }
