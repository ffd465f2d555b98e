-- Which node has the results of an editor's last run in its cache, and what they save.

-- The node that an editor's job may wait for, and until when; nothing if no node is worth it.  A field of such a job's record
-- says for how many seconds it waits at most.
local function awaited(editor, patience, created)
  if not editor or not patience then return end
  local f = fields(editor_key(editor), 'node', 'saving')
  if not f[1] then return end
  local about = fields(node_key(f[1]), 'results', 'verdict', 'cordoned')
  if about[1] ~= editor or about[2] ~= 'up' or about[3] == '1' then return end
  local most = math.min(tonumber(patience) or 0, tonumber(f[2] or '') or 0)
  return f[1], (tonumber(created or '') or 0) + most
end

-- A run of an editor's has ended after so many seconds.  warm: whether anything came from the node's cache.
local function note_results(editor, node, took, warm)
  local key = cleared(editor_key(editor), 'hash')
  local cold = warm and tonumber(redis.call('HGET', key, 'cold') or '')
  redis.call('HSET', key, 'node', node, 'cold', num(cold or took),
    'saving', num(warm and math.max(0, (cold or took) - took) or took))
  redis.call('EXPIRE', key, 86400)
end
