"""The agent: answers HAProxy's agent-checks for the nodes beside it, and talks to the API only."""

from comfy_fleet.agent.agent_check_server import AgentCheckServer
from comfy_fleet.agent.node_source import HttpNodes, NodesSource

__all__ = ["AgentCheckServer", "HttpNodes", "NodesSource"]
