"""Observers of jobs and runs (port ``Telemetry``), and the server of their metrics."""

from comfy_fleet.adapters.telemetry.log_lines import LoggingTelemetry
from comfy_fleet.adapters.telemetry.observers import Observers
from comfy_fleet.adapters.telemetry.prometheus import PrometheusTelemetry, new_registry
from comfy_fleet.adapters.telemetry.server import MetricsServer
from comfy_fleet.ports.telemetry import NullTelemetry

__all__ = [
    "LoggingTelemetry",
    "MetricsServer",
    "NullTelemetry",
    "Observers",
    "PrometheusTelemetry",
    "new_registry",
]
