"""`intsr inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from intsr.console import common_options, emit_json

SHOWN = (
    "model",
    "method",
    "bits",
    "target",
    "library",
    "library_version",
    "gpu_architecture",
    "precision",
    "tile_px",
)


@click.command(epilog="Example: intsr inspect demo.engine --layers")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="The finished plan: kernels by kind, int8 share, memory.")
@common_options
def inspect(engine: Path, layers: bool, as_json: bool) -> None:
    """Show manifest, sizes and, with --layers, what the builder made of each network."""
    from intsr.engines.inspect_engine import inspect_engine

    report = inspect_engine(engine, layers)
    if as_json:
        emit_json(report)
        return
    manifest = report["manifest"]
    click.echo("\n".join(f"{key:<18} {manifest[key]}" for key in SHOWN if manifest[key] != ""))
    for member in report["members"]:
        click.echo(f"{member['name']:<18} {member['size_bytes'] / 1e6:9.2f} MB  sha256 {member['sha256'][:12]}")
    if layers and not report["networks"]:
        click.echo("no plan was recorded: this target compiles when the engine is opened")
    elif layers:
        for plan in [*report["networks"], {"name": "total", **report["total"]}]:
            _show_plan(plan)


def _show_plan(plan: dict[str, Any]) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in plan["kernels_by_kind"].items())
    click.echo(f"{plan['name']:<8} {plan['kernels']} kernels: {kinds}")
    click.echo(
        f"{'':<8} int8 share of conv and linear MACs {plan['int8_mac_share']:.2%}, fp32 GEMMs {plan['fp32_gemms']}, "
        f"activations {plan['activation_bytes'] / 1e6:.1f} MB, weights {plan['weight_bytes'] / 1e6:.1f} MB"
    )
