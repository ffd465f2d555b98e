-- An agent wants to register nodes.  args: host, instance.
-- Returns 1, or 0 where another agent speaks for the host.
return admitted(args.host, args.instance) and 1 or 0
