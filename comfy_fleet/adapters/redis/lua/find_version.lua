-- The versions that a label names, or that begin with these digits.
-- args: name, label, digits; whole (bool): the record of one, too.
-- Returns their names; with whole and just one, its record behind it.
local found = versions_of(args.name, args.label, args.digits)
if #found ~= 1 or not args.whole then return { found } end
return { found, redis.call('HGETALL', workflow_version_key(args.name, found[1])) }
