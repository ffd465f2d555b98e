-- Draw the names under which a job's owner sees its files: each (job, node, key, index) has one for ever.
-- args: run, token, job, owner, most (counters of one owner), groups: {{counter, follows, files: {{place, before, after
--       (the path around a number), bare (the path without one)}}}}: see output_names.py.
-- Returns the files' paths in their order, or {} if the lease is gone.
local id, owner = args.job, args.owner
local r = fields(run_key(args.run), 'token', 'job')
if r[1] ~= args.token or r[2] ~= id then return {} end
local names = cleared(job_names_key(id), 'hash')
local counts = cleared(saved_counts_key(owner), 'hash')
local SHARED = '*'  -- counts for all that have no counter of their own
local paths, drawn = {}, 0

-- What a counter says, and the counter itself: where there is no room for another one, the shared one.
local function count_of(counter)
  local last = redis.call('HGET', counts, counter)
  if last then return tonumber(last) or 0, counter end
  local shared = tonumber(redis.call('HGET', counts, SHARED) or 0) or 0
  if redis.call('HLEN', counts) < args.most then return shared, counter end
  return shared, SHARED
end

-- What follows the last dot of a path's last part; a type and this must be right in whatever name is kept.
local function kind_of(path) return string.match(path, '^%a+') .. (string.match(path, '%.[^./]*$') or '') end

local function keep(file, path)
  redis.call('HSET', names, file.place, path)
  paths[#paths + 1] = path
end

for _, group in ipairs(args.groups) do
  local number
  for _, file in ipairs(group.files) do
    local had = redis.call('HGET', names, file.place)
    if had and kind_of(had) == kind_of(file.before .. file.after) then
      paths[#paths + 1] = had  -- of an earlier run of the job, or of this run with another dispatcher
    else
      if had then redis.call('HDEL', saved_files_key(owner), had) end
      if file.bare and redis.call('HLEN', counts) < args.most and redis.call('HSETNX', counts, file.bare, 0) == 1 then
        keep(file, file.bare)
        group.bare = file.bare
      elseif group.bare then
        keep(file, group.bare)
      else
        if not number then
          local last, counter = count_of(group.counter)
          number = math.max(last, group.follows and drawn or 0) + 1
          redis.call('HSET', counts, counter, string.format('%d', number))
        end
        keep(file, file.before .. string.format('%05d', number) .. file.after)
      end
    end
  end
  drawn = number or 0
end
return paths
