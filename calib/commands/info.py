"""`intsr info`: parameters and operations by network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from intsr.cli.console import common_options, emit_json
from intsr.types import SYNTHETIC_NOTE, Bits

if TYPE_CHECKING:
    from rich.table import Table

    from intsr.calib.models.cost import NetworkCost


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
    from rich.console import Console

    from intsr.calib.calibrate import parse_parts
    from intsr.calib.models import cost as counting

    parts = parse_parts(parts_text)
    architecture = counting.architecture_from_name(model, arch)
    costs = counting.costs_from_architecture(architecture, size_px)
    total = counting.total_from_costs(costs)
    quantized = counting.quantize_cost(costs, bits, parts) if bits else None
    if as_json:
        answer: dict[str, Any] = {"model": architecture.name, "size_px": size_px}
        answer |= {"networks": [_facts(cost) for cost in costs]}
        answer |= {"total": {"parameters": total.parameters, "gops": total.gops}}
        answer |= {"quantized": asdict(quantized)} if quantized else {}
        emit_json(answer | ({"synthetic": True, "note": SYNTHETIC_NOTE} if architecture.synthetic else {}))
        return
    table = _table(f"{architecture.name}, {size_px} x {size_px} output", (*costs, total))
    if quantized:
        label = f"{bits} on {', '.join(parts)}"
        table.add_row(label, f"{quantized.parameters:,}", f"{quantized.gops:,.1f}")
        table.add_row("  of total", f"{quantized.ratio_parameters:.1%}", f"{quantized.ratio_gops:.1%}", style="dim")
    Console().print(table)
    if architecture.synthetic:
        click.echo(SYNTHETIC_NOTE)


def _facts(cost: NetworkCost) -> dict[str, Any]:
    facts = {"name": cost.name, "parameters": cost.parameters, "gops": cost.gops}
    return facts | ({"components": [_facts(half) for half in cost.components]} if cost.components else {})


def _table(title: str, costs: tuple[NetworkCost, ...]) -> Table:
    """A row a network and half of one; the last one is the total."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    table.add_column("parameters", justify="right")
    table.add_column("G operations", justify="right")
    for cost in costs:
        if cost is costs[-1]:
            table.add_section()
        table.add_row(cost.name, f"{cost.parameters:,}", f"{cost.gops:,.1f}")
        for half in cost.components:
            table.add_row(f"  {half.name}", f"{half.parameters:,}", f"{half.gops:,.1f}", style="dim")
    return table
