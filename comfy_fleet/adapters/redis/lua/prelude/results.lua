-- What a job saves, and how another job of its owner gets the same (docs/adr/0043).

local MOST_COUNTERS = 20000  -- of one owner's names, about 2 MB

-- Draw the names under which a job's owner sees its files: each (job, node, key, index) has one for ever.
-- groups: {{counter, follows, files: {{place, before, after (the path around a number), bare (the path without one)}}}}.
-- Returns their places, and their paths in the same order.
local function draw_names(id, owner, most, groups)
  local names = cleared(job_names_key(id), 'hash')
  local counts = cleared(saved_counts_key(owner), 'hash')
  local SHARED = '*'  -- counts for all that have no counter of their own
  local places = {}
  for _, group in ipairs(groups) do
    for _, file in ipairs(group.files) do places[#places + 1] = file.place end
  end
  local SLICE = 1000  -- Lua hands over some thousands at most
  local known = {}
  for first = 1, #places, SLICE do
    local some = redis.call('HMGET', names, unpack(places, first, math.min(first + SLICE - 1, #places)))
    for i = 1, #some do known[first + i - 1] = some[i] end
  end
  local room = most - redis.call('HLEN', counts)
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
  for _, group in ipairs(groups) do
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
  return places, paths
end

local MOST_NAMING = 65536  -- characters of what a job's record or a result says of its files' names

-- Remember in a job's record how its files are named, so that another job can name its own like them.
local function note_naming(id, groups)
  local f = fields(job_key(id), 'results', 'naming')
  if not f[1] then return end
  local naming = (f[2] and f[2] .. '\n' or '') .. cjson.encode(groups)
  if #naming > MOST_NAMING then
    redis.call('HDEL', job_key(id), 'results', 'naming')  -- it is not worth keeping
  else
    redis.call('HSET', job_key(id), 'naming', naming)
  end
end

-- A job's outputs, if another one can get them: each file is there, and it is known how it is named; else nil.
-- {naming, outputs: {{place, output, asset}}}
local function shared_outputs(id, naming)
  local found = { naming = {}, outputs = {} }
  local named = {}
  for line in string.gmatch(naming or '', '[^\n]+') do
    local groups = decoded(line)
    found.naming[#found.naming + 1] = groups
    for _, group in ipairs(groups) do
      for _, file in ipairs(group.files) do named[file.place] = true end
    end
  end
  local outputs = redis.pcall('HGETALL', job_outputs_key(id))
  for i = 1, #outputs, 2 do
    local output = decoded(outputs[i + 1])
    local asset = type(output.asset_id) == 'string' and asset_of(output.asset_id)
    -- Earlier versions delete a job's own folder with everything in it.
    if not asset or string.sub(asset.path, 1, 5) == 'jobs/' or (output.saved and not named[outputs[i]]) then return nil end
    found.outputs[#found.outputs + 1] = { place = outputs[i], output = output, asset = asset }
  end
  return found
end

-- An id for a record of a job's own over another record's bytes: the same one at each try.  One record may be two outputs', if
-- they have one name in two folders; under two names they need two.
local function derived_id(id, asset, name)
  local hex = redis.sha1hex(id .. ' ' .. asset .. ' ' .. name)
  return string.sub(hex, 1, 8) .. '-' .. string.sub(hex, 9, 12) .. '-' .. string.sub(hex, 13, 16) .. '-'
    .. string.sub(hex, 17, 20) .. '-' .. string.sub(hex, 21, 32)
end

-- Give a job the outputs that an equal one has: records of its own over the same bytes, under names of its own.  So either may
-- be deleted.  shared: of shared_outputs, read in this call.  tell: whether somebody may follow the job.
local function give_outputs(shared, from, id, owner, expires, at, tell)
  local paths = {}
  for _, groups in ipairs(shared.naming) do
    local places, drawn = draw_names(id, owner, MOST_COUNTERS, groups)
    for i, place in ipairs(places) do paths[place] = drawn[i] end
  end
  for _, each in ipairs(shared.outputs) do
    local r, output, path = {}, each.output, nil
    for name, value in pairs(each.asset) do r[name] = value end
    if output.saved then
      path = paths[each.place]
      output.subfolder, output.name = string.match(path, '^%a+/(.-)/?([^/]+)$')
      r.file_path = output.name
    end
    r.id, r.job_id, r.created_at, r.expires_at = derived_id(id, each.asset.id, r.file_path), id, num(at), num(expires)
    r.renews, r.kept_from = nil, nil
    add_asset(r)
    output.asset_id = r.id
    local data = cjson.encode(output)
    redis.call('HSET', job_outputs_key(id), each.place, data)
    if path then
      redis.call('HSET', cleared(saved_files_key(owner), 'hash'), path, r.id)
      list_saved(owner, path)
    end
    if tell then publish(id, 'output', nil, data) end
  end
  local ui = redis.pcall('GET', job_ui_key(from))
  if type(ui) == 'string' then redis.call('SET', job_ui_key(id), ui) end
end

local MOST_COPIES = 8  -- jobs besides the newest that an entry names

-- Keep a job's result for later ones: it has succeeded, and nothing of it was lost.
-- followers: {{id, ...}, ...}, jobs that have got the same in this call.
local function keep_result(id, at, followers)
  local key = job_key(id)
  local f = fields(key, 'owner', 'results', 'naming', 'expires_in', 'node', 'flight', 'batch')
  if not f[1] or not f[2] or f[7] then return end  -- one of a batch depends on how many there were
  if not f[6] then redis.call('HDEL', key, 'naming') end
  local version = fields(node_key(f[5] or ''), 'comfyui')[1] or ''
  local copies = {}
  for i = 1, math.min(#followers, MOST_COPIES) do copies[i] = followers[i][1] end
  local entry = cjson.encode({ job = id, at = at, version = version, naming = f[3] or '', copies = #copies > 0 and copies or nil })
  for hash in string.gmatch(f[2], '%S+') do
    redis.call('SET', result_key(f[1], hash), entry, 'EX', math.max(1, math.ceil(tonumber(f[4] or '') or 604800)))
  end
end

-- The result that a job may get, or nil.  wanted: {key, versions, max_age_s (nil: any)}.
-- It is the newest job's that still has it: whoever deletes one of several copies leaves the others.
-- Returns {id, entry (of the key), shared (its outputs), its record's fields}
local function earlier_result(owner, wanted, at)
  local entry = decoded(redis.pcall('GET', result_key(owner, wanted.key)))
  if type(entry.job) ~= 'string' or type(entry.at) ~= 'number' then return nil end
  if wanted.max_age_s and at - entry.at > wanted.max_age_s then return nil end
  local able = false
  for _, version in ipairs(wanted.versions) do able = able or version == entry.version end
  if not able then return nil end
  local jobs = { entry.job }
  for i, id in ipairs(type(entry.copies) == 'table' and entry.copies or {}) do
    if i <= MOST_COPIES and type(id) == 'string' then jobs[#jobs + 1] = id end
  end
  for i, id in ipairs(jobs) do
    local f = fields(job_key(id), 'status', 'owner', 'removed', 'progress', 'run', 'node', 'graph')
    local shared = f[1] == 'succeeded' and f[2] == owner and not f[3] and shared_outputs(id, entry.naming)
    if shared and #shared.outputs > 0 then
      entry.copies = { unpack(jobs, i, i + MOST_COPIES - 1) }  -- of the next one, which becomes the newest
      return { id = id, entry = entry, shared = shared, progress = f[4], run = f[5], node = f[6], graph = f[7] }
    end
  end
end
