-- The place of a queued job among all queued jobs.
-- ARGV: placement, id
-- Returns 1 for the next one, 0 if it does not wait.
return place_of(ARGV[2], ARGV[1])
