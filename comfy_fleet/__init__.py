"""Many GPUs, one ComfyUI: a durable scheduler in front of unmodified ComfyUI servers."""

__version__ = "0.1.0"
