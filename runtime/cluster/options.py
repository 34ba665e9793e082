"""What `--ray` and the options beside it ask for, and what cannot be together with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from intsr.errors import UsageError
from intsr.optional import require
from intsr.targets import target_from_name

# Starts a cluster of this machine alone, which ends with the command.
LOCAL = "local"
_CLIENT = "ray://"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Where the workers are, and how large each is. Raises UsageError, MissingLibraryError."""

    # `local`, `auto` (the cluster that this machine is a part of) or HOST:PORT of the head node.
    address: str
    # None for as many as the cluster has room for.
    actors: int | None = None
    # None: `DEFAULT_CPUS`, or what the nodes have if that is less.
    cpus_per_actor: int | None = None
    # None: 1 for an engine that runs on a GPU, else 0. A part of one is shared with other workers.
    gpus_per_actor: float | None = None

    def __post_init__(self) -> None:
        if self.address.startswith(_CLIENT):
            fix = "run the command on a node of the cluster, or send it there with: ray job submit"
            raise UsageError("--ray", f"{self.address} is Ray Client", "HOST:PORT, auto or local", fix)
        if Path(self.address).is_file():
            expected, fix = "an address, or nothing", "write --ray=auto, or --ray behind the inputs"
            raise UsageError("--ray", f"{self.address} is a file", expected, fix)
        # Before any picture is looked for.
        require("ray", "--ray")


def cluster_options(
    address: str | None, actors: int | None, cpus_per_actor: int | None, gpus_per_actor: float | None
) -> ClusterOptions | None:
    """address: of `--ray`, None without it, "" where it has no value. Returns None without it.

    Raises what `ClusterOptions` raises, and UsageError for the other options without `--ray`.
    """
    if address is None:
        others = {"--ray-actors": actors, "--cpus-per-actor": cpus_per_actor, "--gpus-per-actor": gpus_per_actor}
        if option := next((option for option, value in others.items() if value is not None), None):
            raise UsageError(option, "has no effect without --ray", fix="give --ray too, or leave it out")
        return None
    return ClusterOptions(
        address=address or os.environ.get("RAY_ADDRESS") or LOCAL,
        actors=actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=gpus_per_actor,
    )


def check_beside_ray(options: ClusterOptions, given: Mapping[str, bool], device: str | None, target: str) -> None:
    """given: options that are for one machine alone, and whether they are there. target: of the engine.

    Raises UsageError.
    """
    if option := next((option for option, is_given in given.items() if is_given), None):
        raise UsageError(option, "together with --ray", "one of them")
    if device is not None and ":" in device:
        raise UsageError("--device", f"{device} together with --ray", "no number: Ray gives each worker its GPU")
    if options.gpus_per_actor and not on_gpu(target, device):
        fix = "leave it out" if target_from_name(target).gpu else "leave it out, or give --device cuda if it can"
        raise UsageError("--gpus-per-actor", f"has no effect: the engine, for target {target}, needs no GPU", fix=fix)


def on_gpu(target: str, device: str | None) -> bool:
    """Tell whether an engine for this target runs on a GPU with this `--device`."""
    return target_from_name(target).gpu or device not in (None, "cpu")
