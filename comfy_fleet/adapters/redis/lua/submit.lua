-- Write a job and enqueue it, end it with the result of an equal one, or let it follow one that waits or runs; all or nothing.
-- args: id, owner, graph_hash, depth_limit, ageing_s, priority, placement, expires_in_s, deadline_s, assets (ids, between
--       blanks), rq {mirror (see rq_wanted), data, description, id (in RQ, of a job that was enqueued there)}, idempotency {scope, hash, fingerprint, replay (bool)}, fields (names),
--       prompt_hash (of the id that its client chose), number, front (bool), model_set {key, files (as JSON)},
--       able (some nodes that can run it), weight (its owner's share), tenant ('': the default one), tenant_weight, merge {key, window_s (for which it waits for others)},
--       wanted (nil: its own result) {key, versions, max_age_s,
--       any_seed (bool: the job takes over the other one's seeds)}, kept (nil, or the keys under which others may follow it),
--       timeout_s (longest run), silence_s (of it without progress), fetches (nil, or {id, url, shown, inputs} of each file that it has to wait for),
--       webhook (bool: the record has one), quota (see quotas.lua).
-- ARGV: graph, secret or '', extra data or '', then the record's value for each of the fields.
-- Returns {'schema', layout} | {'ok', created, place in the queue, number} | {'shared', record, outputs} | {'again'} | {'full', depth} | {'gone', asset} | {'limit', ...} as over_quota says | {'ended'}: RQ's entry became no job | {'used', job} | {'replay', job}
local other = other_schema()
if other then return other end
return submit_job(args, { unpack(ARGV, 2) })
