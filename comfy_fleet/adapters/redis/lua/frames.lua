-- Publish frames of runs; nothing of it is stored.
-- args: runs (for each its run, token, job, clients (the channel of who follows its client), only (per frame a character: j: for
--       who follows the job, c: for who follows its client, another one: for both)).
-- ARGV: messages, one run's after the other's.
-- Returns for each run {how many follow the job, and how many its client}, or 0 if its lease is gone.
local out, at = {}, 1
for number, one in ipairs(args.runs) do
  local first = at + 1
  at = at + #one.only
  out[number] = 0
  if owned(one.run, one.token) then
    local found = redis.call('PUBSUB', 'NUMSUB', frames_key(one.job), one.clients)
    local parts = { one.job, ' ' }
    for i = first, at do
      local only = one.only:sub(i - first + 1, i - first + 1)
      if only ~= 'c' and found[2] > 0 then redis.call('PUBLISH', frames_key(one.job), ARGV[i]) end
      if only ~= 'j' and found[4] > 0 then
        parts[#parts + 1] = #ARGV[i] .. ':'
        parts[#parts + 1] = ARGV[i]
      end
    end
    if #parts > 2 then redis.call('PUBLISH', one.clients, table.concat(parts)) end
    out[number] = { found[2], found[4] }
  end
end
return out
