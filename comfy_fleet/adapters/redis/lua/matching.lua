-- Which of some jobs a list wants.
-- ARGV: states wanted, between blanks, or '';  workflow or '';  how many labels;  label, value ...;  then job ids
-- Returns the ids that match.
local states, workflow, labels = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found = {}
for i = 4 + 2 * labels, #ARGV do
  local f = redis.pcall('HMGET', jobkey(ARGV[i]), 'status', 'workflow', 'metadata')
  local fits = not f.err and f[1]
    and (states == '' or string.find(states, ' ' .. f[1] .. ' ', 1, true))
    and (workflow == '' or f[2] == workflow)
  if fits and labels > 0 then
    local has = decoded(f[3] or '')
    for j = 4, 2 + 2 * labels, 2 do fits = fits and has[ARGV[j]] == ARGV[j + 1] end
  end
  if fits then found[#found + 1] = ARGV[i] end
end
return found
