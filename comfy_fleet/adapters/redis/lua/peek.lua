-- Say which job a claim would choose if a node's run ended now.  Nothing is written.
-- args: node, placements, pool, peers, speed, ram, patience_s, able: as for a claim.
-- Returns {the job whose files were staged ahead there, or ''}, and {.., job, its assets (ids between blanks), 1 if it is an editor's} if
--         there is one.  Jobs are left out whose files are staged ahead on another node.
local node, at = args.node, now()
local staged = rehearsal and redis.call('HGET', staged_ahead_key(node), 'job') or ''
local about = redis.call('HMGET', node_key(node), 'cordoned', 'vram', 'results')
if redis.call('HEXISTS', nodes_key, node) == 0 or about[1] == '1' then return { staged } end
local run = holder_of(node)
-- What a run is expected to take is charged by then. A guessed one is charged when it ends.
if run then sched_left(run, math.max(at, sched_number(fields(sched_node_key(node), 'free_at')[1], 0))) end
local look = look_for(node, at, about[2], about[3])
local may = look.may
look.fields[#look.fields + 1] = 'ahead'
function look.may(id, f, placement)
  local where, till = string.match(f.ahead or '', '^(%S+) (%S+)$')
  if where and where ~= node and tonumber(till) > at then return false end
  return may(id, f, placement)
end
local choice = sched_choose(look)
if not choice then return { staged } end
local f = fields(job_key(choice.id), 'assets', 'editor')
return { staged, choice.id, f[1] or '', f[2] and 1 or 0 }
