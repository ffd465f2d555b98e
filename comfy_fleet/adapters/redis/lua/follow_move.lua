-- Let a person's drafts, and what is known of their saves, follow files that were moved. A file that is there again
-- keeps its own. Everything is read before anything goes: names of one folder may change places.
-- args: owner, word (of the move, as it was read), at (when), folder (whether it was one), saves (of {file, to, workflow};
-- to '': they are no graphs any more), drafts (of {name, editor_name, to, new_name}, those saved last first; to '' as
-- above), new (of {file, workflow, editor_name}: graphs that may be known to nobody), unread (their signature), most
-- (saves), kept_s (saves are), base_kept_s (what a forgotten draft was based on).
-- Returns {'schema', layout} | {'ok', 1; 0 if somebody else was first}
local other = other_schema()
if other then return other end
local owner = args.owner
local saves, list = editor_saves_key(owner), drafts_key(owner)
if redis.call('LREM', user_moves_key(owner), 1, args.word) == 0 then return { 'ok', 0 } end

local function save_of(file)
  local text = redis.call('HGET', saves, file)
  local readable, kept = pcall(cjson.decode, text or '')
  if readable and type(kept) == 'table' and tonumber(kept.at) then return kept end
end

local function saved_since(file)
  local kept = save_of(file)
  return kept and tonumber(kept.at) > args.at
end

local function remember(file, at, workflow, signature)
  redis.call('HSET', saves, file, '{"at":' .. num(at) .. ',"workflow":' .. cjson.encode(workflow) .. ',"signature":'
    .. cjson.encode(signature) .. '}')
end

local known = {}
for _, one in ipairs(args.saves) do
  local kept = save_of(one.file)
  if kept and redis.call('HEXISTS', user_files_key(owner), 'workflows/' .. one.file) == 0 then
    redis.call('HDEL', saves, one.file)
    if one.to ~= '' and not saved_since(one.to) then
      remember(one.to, tonumber(kept.at), one.workflow, kept.signature)
      known[one.to] = true
    end
  end
end

local function keep_base(name, base)
  redis.call('HSET', draft_key(owner, name), 'base', base or '')
  redis.call('EXPIRE', draft_key(owner, name), args.base_kept_s)
end

local function forget(name)
  local base = redis.call('HGET', draft_key(owner, name), 'base')
  redis.call('DEL', draft_key(owner, name))
  redis.call('ZREM', list, name)
  keep_base(name, base)
end

local going, stay = {}, {}
for _, one in ipairs(args.drafts) do
  local its = redis.call('HMGET', draft_key(owner, one.name), 'editor_name', 'content')
  if its[1] == one.editor_name and not has_graph(owner, one.editor_name) then
    local there = redis.call('HMGET', draft_key(owner, one.to), 'editor_name', 'at')
    local newer = one.to ~= one.name and there[1] == one.new_name and tonumber(there[2] or 0) > args.at
    if one.to == '' or newer then forget(one.name) elseif its[2] then going[#going + 1] = one end
  end
end

local leaves, claimed
local function free(one)
  if claimed[one.to] or stay[one.to] then return false end
  if leaves[one.to] then return true end
  local theirs = redis.call('HGET', draft_key(owner, one.to), 'editor_name')
  return not theirs or theirs == '' or theirs == one.new_name or not has_graph(owner, theirs)
end

local before
repeat  -- one that finds no place stays, and takes the place of another
  before, leaves, claimed = #going, {}, {}
  for _, one in ipairs(going) do leaves[one.name] = true end
  local rest = {}
  for _, one in ipairs(going) do
    if free(one) then
      claimed[one.to] = true
      rest[#rest + 1] = one
    else
      stay[one.name] = true
    end
  end
  going = rest
until #going == before

for _, one in ipairs(going) do
  one.had = redis.call('HGET', draft_key(owner, one.name), 'base')
  if one.to == one.name then
    one.base = one.had
  else  -- what is in production under the new name is nothing that it was begun from
    one.base = not leaves[one.to] and redis.call('HGET', draft_key(owner, one.to), 'base') or ''
  end
end
for number, one in ipairs(going) do
  redis.call('RENAME', draft_key(owner, one.name), draft_key(owner, '#' .. number))  -- no name looks like this
  redis.call('ZREM', list, one.name)
end
local followed = {}
for number, one in ipairs(going) do
  local key = draft_key(owner, one.to)
  redis.call('RENAME', draft_key(owner, '#' .. number), key)
  redis.call('HSET', key, 'base', one.base or '', 'editor_name', one.new_name)
  redis.call('ZADD', list, redis.call('HGET', key, 'at'), one.to)
  followed[one.new_name] = true
end
for _, one in ipairs(going) do  -- who gets its old name again is still told what others did with it
  if redis.call('EXISTS', draft_key(owner, one.name)) == 0 then keep_base(one.name, one.had) end
end

local room = args.folder and args.most - redis.call('HLEN', saves) or 1
for _, one in ipairs(args.new) do
  if not known[one.file] and not saved_since(one.file) then
    if followed[one.editor_name] then
      redis.call('HDEL', saves, one.file)  -- of the file that was here
    elseif redis.call('HEXISTS', user_files_key(owner), 'workflows/' .. one.file) == 1 then
      local there = redis.call('HEXISTS', saves, one.file) == 1
      if there or room > 0 then remember(one.file, args.at, one.workflow, args.unread) end
      if not there then room = room - 1 end
    end
  end
end
redis.call('EXPIRE', saves, args.kept_s)
return { 'ok', 1 }
