-- Return the layout of this Redis; on request, raise an older one to the script's own.
-- A script is alone while it runs: older data is converted here, before the number is written.  2 and 3 have
-- nothing to convert, and 4 nearly nothing: what 2's lists lack is added when they are read, and jobs that wait in the queues before 3 are adopted later.
-- Records of runs in flight must stay readable for the version that works on them.
-- args: may_raise (bool).  Returns the layout that is in Redis now.
local found = schema()
local number = found == '' and 0 or tonumber(string.match(found, '^%d+$'))
if args.may_raise and number and number < SCHEMA then
  if number < 4 then  -- the list is an inbox now, and no view of what waits
    local shown = redis.pcall('LRANGE', rq_inbox_key, 0, 1999)
    local ours = 0
    while not shown.err and shown[ours + 1] and redis.call('EXISTS', job_key(shown[ours + 1])) == 1 do ours = ours + 1 end
    if ours > 0 then redis.call('LTRIM', rq_inbox_key, ours, -1) end
  end
  redis.call('SET', schema_key, SCHEMA)
  redis.call('PUBLISH', wake_key, 'schema')
  return tostring(SCHEMA)
end
return found == '' and '1' or found
