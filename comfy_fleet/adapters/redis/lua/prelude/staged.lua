-- Files on nodes that graphs read.  Their names are drawn: who has not staged a file can't know where it is.

local MOST_STAGED = 1000  -- on one node

-- Give up a file's name on a node, whose agent deletes it, if it can.
local function give_up_staged(node, file, at)
  local names = staged_key(node)
  local folders, about = redis.call('HGET', names, file), redis.call('HMGET', node_key(node), 'host', 'cleans')
  redis.call('HDEL', names, file)
  redis.call('ZREM', staged_ends_key(node), file)
  if folders and about[1] and about[2] == '1' then
    redis.call('ZADD', cleanup_key(about[1]), num(at), node .. ' ' .. string.gsub(folders, '/', ' '))
  end
end

-- Give up the names whose time is over and that no run needs.  Nobody is ever given such a name again, so an agent may
-- delete what has it at any later time, whatever was staged meanwhile.
local function retire_staged(node, at)
  local ends = staged_ends_key(node)
  local over = redis.call('ZRANGEBYSCORE', ends, '-inf', num(at), 'LIMIT', 0, 100)
  if #over == 0 then return end
  local needed = {}
  for _, run in ipairs(redis.call('SMEMBERS', node_runs_key(node))) do
    for file in string.gmatch(fields(run_key(run), 'staged')[1] or '', '%S+') do needed[file] = true end
  end
  for _, file in ipairs(over) do
    if needed[file] then redis.call('ZADD', ends, num(at + 60), file) else give_up_staged(node, file, at) end
  end
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
