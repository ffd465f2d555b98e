-- Put jobs of earlier versions into their owner's lists.  args: owner, ids.  Returns {'schema', layout} | {'ok'}.
local other = other_schema()
if other then return other end
for _, id in ipairs(args.ids) do mend_job(id, args.owner, true) end  -- whoever follows the owner reads the lists next
return { 'ok' }
