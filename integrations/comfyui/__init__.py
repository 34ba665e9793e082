"""IntSR's nodes for ComfyUI: copy this folder into `custom_nodes` (README.md)."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
