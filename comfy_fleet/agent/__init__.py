"""The agent: answers HAProxy's agent-checks for its nodes, and talks only to the API."""

from comfy_fleet.agent.agent_check_server import AgentCheckServer
from comfy_fleet.agent.node_source import HttpNodes, NodesSource

__all__ = ["AgentCheckServer", "HttpNodes", "NodesSource"]
