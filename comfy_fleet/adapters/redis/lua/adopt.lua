-- Let jobs wait in this layout's indexes that an earlier version has queued or given back.  args: most (to look at).
-- Returns {'schema', layout} | {'ok', how many it looked at}.
local other = other_schema()
if other then return other end
return { 'ok', adopt(args.most) }
