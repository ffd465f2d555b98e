-- Call one of the functions for choosing.  args: what, and what it needs.  Returns JSON.
local result = {}
if args.what == 'add' then
  local record = { 'HSET', job_key(args.id) }
  for name, value in pairs(args.record) do
    record[#record + 1] = name
    record[#record + 1] = value
  end
  redis.call(unpack(record))
  if args.files then redis.call('SET', sched_set_key(args.record.set), args.files) end
  counted = 0
  sched_weigh(args.record.owner, args.weight or 1)
  for tenant, weight in pairs(args.tenant_weights or {}) do sched_weigh('/' .. tenant, weight) end
  sched_add(args.id, args.at, args.able)
elseif args.what == 'remove' then
  sched_remove(args.id)
elseif args.what == 'choose' then
  local look = { node = args.node, pool = args.pool, queues = args.queues, peers = args.peers, speed = args.speed,
    vram = args.vram, ram = args.ram, patience = args.patience, at = args.at, able = args.able,
    unable = args.unable, fields = { 'start_by', 'memory' } }
  function look.may(id, f, placement)
    return (tonumber(f.memory) or 0) <= args.vram and not (f.start_by and args.at > tonumber(f.start_by))
  end
  local choice, again, other = sched_choose(look)
  result.heads = sched.reads
  if choice then
    for _, name in ipairs({ 'id', 'placement', 'rule', 'missing_disk', 'missing_memory' }) do result[name] = choice[name] end
    result.load_s, result.cost_s = sched_text(choice.load_s), sched_text(choice.cost_s)
    redis.call('HSET', run_key(args.run), 'node', args.node)
    sched_start(look, choice, args.run)
  else
    result.again_s, result.other = again and sched_text(again), other
  end
elseif args.what == 'left' then
  sched_left(args.run, args.at)
  if args.load_s then sched_measured(args.node, args.disk, args.memory, args.load_s) end
elseif args.what == 'cold' then
  sched_cold(args.node)
  redis.call('HDEL', sched_node_key(args.node), 'disk_rate', 'ram_rate')
elseif args.what == 'off' then
  sched_off(args.node)
elseif args.what == 'learn' then
  sched_learn(args.run, args.profile)
elseif args.what == 'place' then
  result.place = sched_place(args.id)
elseif args.what == 'standing' then
  redis.call('DEL', sched_count_key)
  for C, count in pairs(args.counts) do redis.call('HSET', sched_count_key, C, count) end
  counted = 0
  local place, first, tenants = sched_place(args.id)
  local free = tonumber(place[4])
  result.before = counted
  result.standing = sched_standing(args.id, place[1], first, tenants, free and (free < 0 and 0 or math.abs(free - args.at)), args.node)
elseif args.what == 'holder' then
  result.node = sched_idle_holder(args.id)
end
result.commands = counted
return cjson.encode(result)
