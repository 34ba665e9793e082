"""Hand a bundle's members to their target's library."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from intsr.manifest import NetworkEntry
from intsr.runtime.backends.protocol import Backend, Network, SessionOptions
from intsr.targets import target_from_name

if TYPE_CHECKING:
    from intsr.bundle import Bundle

N = TypeVar("N", bound=Network)


def open_backend(bundle: Bundle, options: SessionOptions) -> Backend:
    """Open all networks of a bundle that was checked (`compatibility.check_runs_here`).

    Raises UsageError, BundleError, EngineMismatchError, OutOfMemoryError.
    """
    module = import_module(target_from_name(bundle.manifest.target).backend)
    backend: Backend = module.open_backend(bundle, options)
    return backend


def load_library(target: str) -> None:
    """Import the target's library and have it run something tiny, where it is one of the CPU.

    A GPU's is loaded with its device, whose memory is counted apart.
    """
    import_module(target_from_name(target).backend).load_library()


def open_each(
    open_network: Callable[[Bundle, NetworkEntry, SessionOptions], N], bundle: Bundle, options: SessionOptions
) -> list[N]:
    """Open one network after the other; those that are open are closed again where a later one fails."""
    with ExitStack() as opened:
        networks: list[N] = []
        for entry in bundle.manifest.networks:
            networks.append(open_network(bundle, entry, options))
            opened.callback(networks[-1].close)
        opened.pop_all()
    return networks
