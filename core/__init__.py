"""IntSR: one-step-diffusion super-resolution models compiled into integer engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intsr.runtime.engine import Engine, open_engine

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "open_engine"]


def __getattr__(name: str) -> Any:
    # Resolved on first use: `intsr --help` must not pay for numpy and Pillow.
    if name in ("Engine", "open_engine"):
        from intsr.runtime import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'intsr' has no attribute {name!r}")
