"""`intsr info`: parameters and operations by network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from intsr.cli.console import common_options, emit_json
from intsr.types import SYNTHETIC_NOTE, Bits

if TYPE_CHECKING:
    from intsr.calib.models.cost import NetworkCost, QuantizedCost


@click.command(
    epilog="Example: intsr info --arch sd21 --bits w8a8 --parts unet,vae",
    short_help="Parameters and operations of a model, by network.",
)
@click.argument("model", required=False)
@click.option("--arch", type=click.Choice(["sd21"]), help="A known architecture instead of a model folder.")
@click.option("--bits", "bits_text", metavar="wXaY", help="Also count what is left at these bits.")
@click.option("--parts", "parts_text", default="unet,vae", show_default=True, help="What --bits quantizes.")
@click.option(
    "--size", "size_px", type=click.IntRange(min=1), default=512, show_default=True, help="Output side in pixels."
)
@common_options
def info(
    *, model: str | None, arch: str | None, bits_text: str | None, parts_text: str, size_px: int, as_json: bool
) -> None:
    """Parameters and operations of MODEL, counted without its weights.

    MODEL is a folder in diffusers' format, a single SD 2.1 file, owner/name@REVISION of the Hugging Face hub, or the
    word demo.

    Operations are twice the multiply-accumulates of convolutions and linear layers for one square picture;
    attention's matrix products are not counted. With --bits, quantized parts count in 32-bit equivalents:
    parameters at the weights' bits over 32, operations at the wider of both over 32.
    """
    from intsr.optional import require

    bits = Bits.parse(bits_text) if bits_text is not None else None
    for library in ("torch", "diffusers"):
        require(library, "intsr info")
    from intsr.calib.calibrate import parse_parts
    from intsr.calib.models import cost as counting

    parts = parse_parts(parts_text)
    architecture = counting.architecture_from_name(model, arch)
    costs = counting.costs_from_architecture(architecture, size_px)
    quantized = counting.quantize_cost(costs, bits, parts) if bits else None
    if as_json:
        note = {"synthetic": True, "note": SYNTHETIC_NOTE} if architecture.synthetic else {}
        emit_json(_json_from_costs(architecture.name, size_px, costs, quantized) | note)
    else:
        label = f"{bits} on {', '.join(parts)}"
        _print_table(f"{architecture.name}, {size_px} x {size_px} output", costs, quantized, label)
        if architecture.synthetic:
            click.echo(SYNTHETIC_NOTE)


def _json_from_costs(
    name: str, size_px: int, costs: tuple[NetworkCost, ...], quantized: QuantizedCost | None
) -> dict[str, Any]:
    from dataclasses import asdict

    from intsr.calib.models.cost import total_from_costs

    def describe(cost: NetworkCost) -> dict[str, Any]:
        described: dict[str, Any] = {"name": cost.name, "parameters": cost.parameters, "gops": cost.gops}
        if cost.components:
            described["components"] = [describe(component) for component in cost.components]
        return described

    total = total_from_costs(costs)
    answer = {
        "model": name,
        "size_px": size_px,
        "networks": [describe(cost) for cost in costs],
        "total": {"parameters": total.parameters, "gops": total.gops},
    }
    return answer | ({"quantized": asdict(quantized)} if quantized else {})


def _print_table(
    title: str, costs: tuple[NetworkCost, ...], quantized: QuantizedCost | None, quantized_label: str
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from intsr.calib.models.cost import total_from_costs

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    table.add_column("parameters", justify="right")
    table.add_column("G operations", justify="right")
    for cost in costs:
        table.add_row(cost.name, f"{cost.parameters:,}", f"{cost.gops:,.1f}")
        for half in cost.components:
            table.add_row(f"  {half.name}", f"{half.parameters:,}", f"{half.gops:,.1f}", style="dim")
    total = total_from_costs(costs)
    table.add_section()
    table.add_row("total", f"{total.parameters:,}", f"{total.gops:,.1f}")
    if quantized:
        table.add_row(quantized_label, f"{quantized.parameters:,}", f"{quantized.gops:,.1f}")
        table.add_row("  of total", f"{quantized.ratio_parameters:.1%}", f"{quantized.ratio_gops:.1%}", style="dim")
    Console().print(table)
