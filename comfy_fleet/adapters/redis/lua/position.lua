-- The place of a queued job among all queued jobs.  args: job, placement.
-- Returns 1 for the next one, 0 if it does not wait.
return place_of(args.job, args.placement)
