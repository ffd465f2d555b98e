-- An agent wants to register nodes.  ARGV: host, instance
-- Returns 1, or 0 where another agent speaks for the host.
return admitted(ARGV[1], ARGV[2]) and 1 or 0
