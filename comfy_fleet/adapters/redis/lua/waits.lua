-- Why a queued job waits, or its leader, and where that stands.  args: job, node (the able one that is free first; nil: none).
-- Returns {node with its graph's results or '', seconds for which it waits for that at most}, and if it stands in a queue:
-- its place among its owner's jobs there (from 0), seconds until it is overdue or '' if nobody has passed it over, a node that
-- has its models or '', seconds until that is free (0: it is; one that is late takes as long again), 1 if its owner has used
-- its share; where it stands as JSON, '' if nothing is known of how long jobs take; for how many seconds it still waits for
-- others to be merged with, '' if it does not; 1 if its tenant has used its share; the bound of running
-- jobs that keeps it from starting: whose, and how many, between blanks, '' if none does.
local at, id = now(), led_by(args.job)
local f = fields(job_key(id), 'editor', 'patience', 'created', 'status', 'merge', 'merge_most', 'merge_until', 'bounds')
if f[4] ~= 'queued' then return { '', '0' } end
local there, till = awaited(f[1], f[2], f[3])
local found = { '', '0' }
if there and till > at then found = { there, num(till - at) } end
local place, first, tenants = sched_place(id)
if not place then return found end
local overdue, free = tonumber(place[2]), tonumber(place[4])
found[3] = place[1]
found[4] = overdue and num(overdue - at) or ''
found[5] = place[3]
found[6] = (not free or free < 0) and '0' or num(math.abs(free - at))
found[7] = place[5]
local held_in_s = place[3] ~= '' and math.abs((free and free >= 0 and free or at) - at) or nil
local standing = sched_standing(id, place[1], first, tenants, held_in_s, args.node)
found[8] = standing and cjson.encode(standing) or ''
local gathers_s = merge_gathers_s({ merge = f[5], merge_most = f[6], merge_until = f[7] }, at)
found[9] = gathers_s and num(gathers_s) or ''
found[10] = place[6]
local room, by, most = bounds_room(f[8])
found[11] = room <= 0 and string.match(by, '^%a+') .. ' ' .. string.format('%d', most) or ''
return found
