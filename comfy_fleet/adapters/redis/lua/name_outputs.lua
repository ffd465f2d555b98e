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

local places = {}
for _, group in ipairs(args.groups) do
  for _, file in ipairs(group.files) do places[#places + 1] = file.place end
end
local SLICE = 1000  -- Lua hands over some thousands at most
local known = {}
for first = 1, #places, SLICE do
  local some = redis.call('HMGET', names, unpack(places, first, math.min(first + SLICE - 1, #places)))
  for i = 1, #some do known[first + i - 1] = some[i] end
end
local room = args.most - redis.call('HLEN', counts)
local paths, named, lasts = {}, {}, {}

local function last_of(counter)
  if not lasts[counter] then
    local last = redis.call('HGET', counts, counter)
    lasts[counter] = last and (tonumber(last) or 0)
  end
  return lasts[counter]
end

-- The next number of a counter; where there is no room for another one, of the shared one.
local function next_of(counter, above)
  local last = last_of(counter)
  if not last then
    last = last_of(SHARED) or 0
    if room > 0 then room = room - 1 else counter = SHARED end
  end
  lasts[counter] = math.max(last, above) + 1
  return lasts[counter]
end

-- A path's folder type and extension: in whatever name is kept, they must be right.
local function kind_of(path) return string.match(path, '^%a+') .. (string.match(path, '%.[^./]*$') or '') end

local number
for _, group in ipairs(args.groups) do
  local above = group.follows and number or 0
  local bare
  number = nil
  for _, file in ipairs(group.files) do
    local at = #paths + 1
    local path = known[at]  -- of an earlier run of the job, or of this run with another dispatcher
    if not path or kind_of(path) ~= kind_of(file.before .. file.after) then
      if path then
        redis.call('HDEL', saved_files_key(owner), path)
        unlist_saved(owner, path)
      end
      if file.bare and not bare and not number and room > 0
        and redis.call('HSETNX', counts, file.bare, 0) == 1 then
        room = room - 1
        bare = file.bare
      end
      if not bare then number = number or next_of(group.counter, above) end
      path = bare or file.before .. string.format('%05d', number) .. file.after
      named[#named + 1] = file.place
      named[#named + 1] = path
    end
    paths[at] = path
  end
end
for counter, last in pairs(lasts) do
  if last then redis.call('HSET', counts, counter, string.format('%d', last)) end
end
for first = 1, #named, SLICE do
  redis.call('HSET', names, unpack(named, first, math.min(first + SLICE - 1, #named)))
end
return paths
