"""Where the autoscaler's nodes come from (port :class:`comfy_fleet.ports.scaling.NodeProvider`)."""
