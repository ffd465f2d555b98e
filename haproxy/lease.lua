-- http-request lua.pick_node, in a lease backend: make the dispatcher's node list binding.
--
-- Reads   txn.wanted   "g3 g7 ...": able nodes in order of preference; only the first 64 are looked at.
-- Writes  txn.node     the first of them that HAProxy would use right now; unset when there is none.
--
-- A node is usable when it is up, has weight and has a free slot. Servers that were added through the
-- Runtime API are missing in core.backends[...].servers on 2.6, so everything is asked through sample fetches,
-- which look a server up by name at call time. No fetch tells that a server drains, which is why whoever drains
-- a server here also takes its weight away: agents answer "drain up 0%", the controller sets weight 0 and drain.
--
-- The bare name means this backend's server. "backend/server" would do for one fetch only: 2.6 writes a zero
-- byte over the slash, into Lua's own string.

local LIMIT = 64

local function usable(fetch, server)
  return fetch:srv_is_up(server) == 1
    and fetch:srv_weight(server) > 0
    and fetch:srv_conn_free(server) > 0
end

core.register_action("pick_node", { "http-req" }, function(txn)
  local wanted = txn:get_var("txn.wanted")
  if wanted == nil then return end
  local seen = 0
  for name in string.gmatch(wanted, "[%w_.-]+") do
    seen = seen + 1
    if seen > LIMIT then return end
    -- A fetch raises an error for a server that does not exist (any more): not usable, then.
    local known, yes = pcall(usable, txn.f, name)
    if known and yes then
      txn:set_var("txn.node", name)
      return
    end
  end
end)
