-- Files on nodes that graphs read.  Their names are drawn: who has not staged a file can't know where it is.

local MOST_STAGED = 1000  -- on one node

-- The host whose agent deletes a node's files; nothing if nobody does.
local function cleaner_of(node)
  local about = redis.call('HMGET', node_key(node), 'host', 'cleans')
  return about[2] == '1' and about[1] or nil
end

-- Give up a file's name on a node.
local function give_up_staged(node, file, host, at)
  local names = staged_key(node)
  local folders = redis.call('HGET', names, file)
  redis.call('HDEL', names, file)
  redis.call('HDEL', staged_ahead_key(node), file)
  redis.call('ZREM', staged_ends_key(node), file)
  if folders and host then
    redis.call('ZADD', cleanup_key(host), num(at), node .. ' ' .. string.gsub(folders, '/', ' '))
  end
end

-- Give up the names whose time is over and that no run needs.  Nobody is ever given such a name again, so an agent may
-- delete what has it at any later time, whatever was staged meanwhile.  Where nobody deletes, names stay while there is
-- room.
local function retire_staged(node, at, full)
  local ends = staged_ends_key(node)
  local over = redis.call('ZRANGEBYSCORE', ends, '-inf', num(at), 'LIMIT', 0, 100)
  if #over == 0 then return end
  local host = cleaner_of(node)
  if not host and not full then return end
  local needed = {}
  for _, run in ipairs(redis.call('SMEMBERS', node_runs_key(node))) do
    for file in string.gmatch(fields(run_key(run), 'staged')[1] or '', '%S+') do needed[file] = true end
  end
  for _, file in ipairs(over) do
    if needed[file] then redis.call('ZADD', ends, num(at + 60), file) else give_up_staged(node, file, host, at) end
  end
end

-- What stands for a file on nodes: it is of its owner, content and extension.  about: these as an asset's record has them, the last
-- one in its path.
local function staged_file(about)
  local extension = string.match(about[3] or '', '%.([^./]*)$') or ''
  return redis.sha1hex(table.concat({ about[1], about[2], extension }, '\n'))
end

-- Return the folders of a file on a node, and 1 if they are new: the drawn ones.
local function staged_in(node, file, drawn, at, keep_s)
  local names, ends = staged_key(node), staged_ends_key(node)
  local folders = redis.call('HGET', names, file)
  local known = tonumber(redis.call('ZSCORE', ends, file) or 0)
  if not folders then redis.call('HSET', names, file, drawn) end
  if known < at + keep_s then redis.call('ZADD', ends, num(at + keep_s), file) end
  return folders or drawn, folders and 0 or 1
end
