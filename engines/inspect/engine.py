"""What is in an `.engine` file, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intsr.bundle import Bundle
from intsr.errors import UsageError
from intsr.runtime.backends.codes import are_packed, stored_codes
from intsr.types import SYNTHETIC_NOTE

SUMMED = ("kernels", "quantize_kernels", "reformat_kernels", "fp32_gemms", "weight_bytes", "macs")
SHARES = ("int8_mac_share", "int8_weight_share")
COMPARED = ("kernels", "activation_bytes", "weight_bytes")


def inspect_engine(path: Path, layers: bool) -> dict[str, Any]:
    """`manifest`, `members`, `tile_sizes`, `run_facts`, a `note` on random weights, with `layers` the finished plans
    by network and in total.

    Plans are as the builder saw them when the engine was made; activation_bytes of the total is the largest, as the
    networks run one after the other. Raises BundleError, UsageError.
    """
    with Bundle(path) as bundle:
        bundle.check()
        manifest = bundle.manifest
        members = [
            {"name": name, "size_bytes": size, "sha256": manifest.sha256[name], **_stored(bundle, name)}
            for name, size in bundle.sizes_bytes().items()
        ]
    plans = manifest.build.get("plans", {})
    values = asdict(manifest)
    values["build"] = {key: value for key, value in manifest.build.items() if key != "plans"}
    report: dict[str, Any] = {"manifest": values, "members": members, "tile_sizes": list(manifest.tile_sizes)}
    report["run_facts"] = manifest.run_facts()
    if manifest.synthetic:
        report["note"] = SYNTHETIC_NOTE
    if layers:
        networks = [{"name": name, **plan} for name, plan in plans.items() if plan]
        report["networks"] = networks
        # A target that compiles when the engine is opened has no plan, and so no total either.
        report["total"] = _total(networks) if networks else None
    return report


def _stored(bundle: Bundle, name: str) -> dict[str, Any]:
    """Of a member with packed codes: what it is when opened, and bits a code -> codes."""
    with bundle.member(name) as view:
        if not are_packed(view):
            return {}
        stored = stored_codes(view, f"{bundle.path}:{name}")
    return {"unpacked_bytes": stored.unpacked_bytes, "codes": {str(k): v for k, v in stored.bits_of_codes.items()}}


def _total(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """The networks' plans in one; shares are weighted by MACs."""
    total: dict[str, Any] = {key: sum(plan[key] for plan in networks) for key in _told_by_all(SUMMED, networks)}
    kinds: Counter[str] = Counter()
    for plan in networks:
        kinds.update(plan["kernels_by_kind"])
    total["kernels_by_kind"] = dict(kinds.most_common())
    total["activation_bytes"] = max((plan["activation_bytes"] for plan in networks), default=0)
    for share in _told_by_all(SHARES, networks):
        integer = sum(plan[share] * plan["macs"] for plan in networks)
        total[share] = integer / total["macs"] if total["macs"] else 0.0
    return total


def _told_by_all(keys: tuple[str, ...], networks: list[dict[str, Any]]) -> list[str]:
    """TensorRT's plans say more than others."""
    return [key for key in keys if all(key in plan for plan in networks)]


def compare_plans(report: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """`name` and what of COMPARED is how many times that of the engine at `path`, by network and in total.

    report: of `inspect_engine` with layers. Raises UsageError where one of the engines has no plan.
    """
    other = inspect_engine(path, layers=True)
    for found in (report, other):
        if not found["networks"]:
            got = f"no plan was recorded for target {found['manifest']['target']}"
            raise UsageError("--against", got, "TensorRT engines")
    plans = [{"name": "total", **values["total"]} for values in (report, other)]
    pairs = zip([*report["networks"], plans[0]], [*other["networks"], plans[1]], strict=True)
    return [
        {"name": plan["name"], **{key: plan[key] / base[key] for key in COMPARED if base[key]}}
        for plan, base in pairs
    ]
