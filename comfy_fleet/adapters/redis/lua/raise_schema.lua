-- Raise the layout of this Redis to the script's own; nothing is done to one that is newer.
-- A script is alone while it runs: what has to be done to older data is done here, before the number is written.
-- Records of runs in flight must stay readable for the version that works on them.
-- Returns the layout that is in Redis now.
local found = schema()
if tonumber(found) and tonumber(found) < SCHEMA or found == '' then
  redis.call('SET', 'fleet:schema', SCHEMA)
  redis.call('PUBLISH', 'fleet:wake', 'schema')
  return tostring(SCHEMA)
end
return found
