-- A node could not be read: let others try, and say why.  ARGV: node, why or ''
redis.call('DEL', 'fleet:reading:' .. ARGV[1])
local key = 'fleet:node:' .. ARGV[1]
if ARGV[2] == '' or redis.call('HEXISTS', 'fleet:nodes', ARGV[1]) == 0 then return 0 end
redis.call('HSET', key, 'unread', ARGV[2])
return 1
