"""Stored workflows as tools of agents, over the Model Context Protocol; to the fleet, it is a client."""
