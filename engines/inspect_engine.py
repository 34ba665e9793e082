"""What is in an `.engine` file, as plain data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from intsr.bundle import Bundle

SUMMED = ("kernels", "fp32_gemms", "weight_bytes", "macs")


def inspect_engine(path: Path, layers: bool) -> dict[str, Any]:
    """`manifest`, `members`, and with `layers` the finished plans by network and in total.

    Plans are as the builder saw them when the engine was made; activation_bytes of the total is the largest, as the
    networks run one after the other. Raises BundleError, UsageError.
    """
    with Bundle(path) as bundle:
        manifest = bundle.manifest
        members = [
            {"name": name, "size_bytes": size, "sha256": manifest.sha256[name]}
            for name, size in bundle.sizes_bytes().items()
        ]
    plans = manifest.build.get("plans", {})
    values = asdict(manifest)
    values["build"] = {key: value for key, value in manifest.build.items() if key != "plans"}
    report: dict[str, Any] = {"manifest": values, "members": members}
    if layers:
        networks = [{"name": name, **plan} for name, plan in plans.items() if plan]
        report["networks"] = networks
        # A target that compiles when the engine is opened has no plan, and so no total either.
        report["total"] = total_of_plans(networks) if networks else None
    return report


def total_of_plans(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """The networks' plans in one; int8_mac_share is weighted by MACs."""
    total: dict[str, Any] = {key: sum(plan[key] for plan in networks) for key in SUMMED}
    kinds: dict[str, int] = {}
    for plan in networks:
        for kind, count in plan["kernels_by_kind"].items():
            kinds[kind] = kinds.get(kind, 0) + count
    total["kernels_by_kind"] = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    total["activation_bytes"] = max((plan["activation_bytes"] for plan in networks), default=0)
    integer = sum(plan["int8_mac_share"] * plan["macs"] for plan in networks)
    total["int8_mac_share"] = integer / total["macs"] if total["macs"] else 0.0
    return total
