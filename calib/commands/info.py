"""`intsr info`: parameters and operations by network."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from intsr.cli.console import common_options, emit_json
from intsr.cli.options import given_options, refuse_given
from intsr.errors import UsageError
from intsr.types import FAMILY_NAMES, SYNTHETIC_NOTE, Bits

if TYPE_CHECKING:
    from rich.table import Table

    from intsr.calib.models.cost import NetworkCost
    from intsr.calib.models.families.wan import VideoArchitecture


@click.command(
    epilog="Example: intsr info --arch sd21 --bits w8a8 --parts unet,vae",
    short_help="Parameters and operations of a model, by network.",
)
@click.argument("model", required=False)
@click.option(
    "--arch", type=click.Choice(["sd21", "wan2.1-1.3b"]), help="A known architecture instead of a model folder."
)
@click.option(
    "--family",
    type=click.Choice(FAMILY_NAMES),
    help="A family instead of a model: AdcSR's networks, or a LoRA, and sd21, which it is merged into.",
)
@click.option("--digests", is_flag=True, help="Read the weights, too: is it SD 2.1, and which copy?")
@click.option("--bits", "bits_text", metavar="wXaY", help="Also count what is left at these bits.")
@click.option("--parts", "parts_text", default="unet,vae", show_default=True, help="What --bits quantizes.")
@click.option(
    "--size",
    "size_text",
    default="512",
    show_default=True,
    metavar="PX|WxH",
    help="Output side in pixels; of a video model also width and height.",
)
@click.option("--frames", type=int, help="Of a video model: output frames in a chunk, 4n + 1. [default: 25]")
@common_options
def info(
    *,
    model: str | None,
    arch: str | None,
    family: str | None,
    digests: bool,
    bits_text: str | None,
    parts_text: str,
    size_text: str,
    frames: int | None,
    as_json: bool,
) -> None:
    """Parameters and operations of MODEL, counted without its weights.

    MODEL is a folder in diffusers' format, of a picture or a video model, or of AdcSR's two files, a single SD 2.1
    file, owner/name@REVISION of the Hugging Face hub, or the word demo. Copies of SD 2.1, which is no longer where it
    was published, are compared by --digests.

    Operations are twice the multiply-accumulates of convolutions and linear layers for one square picture;
    attention's matrix products are not counted. With --bits, quantized parts count in 32-bit equivalents:
    parameters at the weights' bits over 32, operations at the wider of both over 32.

    Of a video model they are for one chunk of frames, and attention's matrix products are counted apart. Of its
    transformer, `constant` is what a fixed timestep and text leave out, and `one step` what is computed.
    """
    from intsr.optional import require

    bits = Bits.parse(bits_text) if bits_text is not None else None
    for library in ("torch", "diffusers"):
        require(library, "intsr info")
    from intsr.calib.models.video_cost import video_architecture

    width_px, height_px = _parse_size(size_text)
    of_video = video_architecture(model, arch)
    if of_video is not None:
        refuse_given(("bits_text", "parts_text", "digests", "family"), "a video model", "a picture model")
        _video_info(of_video, frames, width_px, height_px, as_json)
        return
    if bits is None and "parts_text" in given_options():
        raise UsageError("--parts", "without --bits", "both: it says what they are of")
    if frames is not None:
        raise UsageError("--frames", f"{frames} of a picture model", "a video model")
    if width_px != height_px:
        raise UsageError("--size", size_text, "one side, of a square picture")
    if digests and model is None:
        raise UsageError("--digests", "no weights to read", "a MODEL")
    of_picture: dict[str, Any] = {"bits": bits, "parts_text": parts_text, "digests": digests, "size_px": width_px}
    _picture_info(model, arch, family, as_json=as_json, **of_picture)


def _parse_size(text: str) -> tuple[int, int]:
    """Read `512` or `1280x720` as width and height. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(sides) < 1:
        raise UsageError("--size", repr(text), "a side in pixels, or width x height, for example 512 or 1280x720")
    return sides


def _picture_info(
    model: str | None,
    arch: str | None,
    family: str | None,
    *,
    bits: Bits | None,
    parts_text: str,
    digests: bool,
    size_px: int,
    as_json: bool,
) -> None:
    from rich.console import Console

    from intsr.calib.calibrate import parse_parts
    from intsr.calib.models import cost as counting
    from intsr.calib.models.weight_facts import weight_facts

    parts = parse_parts(parts_text)
    architecture = counting.architecture_from_name(model, arch, family)
    costs = counting.costs_from_architecture(architecture, size_px)
    total = counting.total_from_costs(costs)
    quantized = counting.quantize_cost(costs, bits, parts) if bits else None
    lora = counting.parameters_of_lora(family) if family else 0
    held = list(weight_facts(model)) if digests and model else []
    if as_json:
        answer: dict[str, Any] = {"model": architecture.name, "size_px": size_px}
        answer |= {"networks": [_facts(cost) for cost in costs]}
        answer |= {"total": {"parameters": total.parameters, "gops": total.gops}}
        answer |= {"quantized": asdict(quantized)} if quantized else {}
        answer |= {"lora_parameters": lora} if lora else {}
        answer |= {"weights": [asdict(facts) for facts in held]} if held else {}
        emit_json(answer | _synthetic_facts(architecture.synthetic))
        return
    table = _table(f"{architecture.name}, {size_px} x {size_px} output", (*costs, total))
    if quantized:
        label = f"{bits} on {', '.join(parts)}"
        table.add_row(label, f"{quantized.parameters:,}", f"{quantized.gops:,.1f}")
        table.add_row("  of total", f"{quantized.ratio_parameters:.1%}", f"{quantized.ratio_gops:.1%}", style="dim")
    Console().print(table)
    if lora:
        click.echo(f"  LoRA, merged into them: {lora:,} parameters")
    for facts in held:
        layout = f"names and shapes of {facts.layout}" if facts.layout else "of no known architecture"
        click.echo(f"  {facts.part}: {facts.tensors} tensors, {layout}; in fp16 sha256 {facts.sha256_fp16}")
    if architecture.synthetic:
        click.echo(SYNTHETIC_NOTE)


def _video_info(
    architecture: VideoArchitecture, frames: int | None, width_px: int, height_px: int, as_json: bool
) -> None:
    from rich.console import Console

    from intsr.calib.models.cost import total_from_costs
    from intsr.calib.models.video_cost import DEFAULT_FRAMES, ChunkSize, costs_from_video_architecture, tokens

    size = ChunkSize(DEFAULT_FRAMES if frames is None else frames, width_px, height_px)
    costs = costs_from_video_architecture(architecture, size)
    total = total_from_costs(costs)
    count = tokens(architecture, size)
    if as_json:
        answer: dict[str, Any] = {"model": architecture.name, **asdict(size), "tokens": count}
        answer |= {"networks": [_facts(cost, attention=True) for cost in costs]}
        answer |= {"total": {key: getattr(total, key) for key in ("parameters", "gops", "attention_gops")}}
        emit_json(answer | _synthetic_facts(architecture.synthetic))
        return
    title = f"{architecture.name}, {size.frames} frames of {width_px} x {height_px} output, {count:,} tokens"
    Console().print(_table(title, (*costs, total), attention=True))
    if architecture.synthetic:
        click.echo(SYNTHETIC_NOTE)


def _synthetic_facts(synthetic: bool) -> dict[str, Any]:
    return {"synthetic": True, "note": SYNTHETIC_NOTE} if synthetic else {}


def _facts(cost: NetworkCost, attention: bool = False) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": cost.name, "parameters": cost.parameters, "gops": cost.gops}
    facts |= {"attention_gops": cost.attention_gops} if attention else {}
    parts = [_facts(part, attention) for part in cost.components]
    return facts | ({"components": parts} if parts else {})


def _table(title: str, costs: tuple[NetworkCost, ...], attention: bool = False) -> Table:
    """A row a network and part of one; the last one is the total. attention: a column of its own."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network")
    for name in ("parameters", "G operations", *(("attention's",) if attention else ())):
        table.add_column(name, justify="right")

    def add(cost: NetworkCost, indent: str = "", style: str | None = None) -> None:
        numbers = [f"{cost.parameters:,}", f"{cost.gops:,.1f}", f"{cost.attention_gops:,.1f}"]
        table.add_row(f"{indent}{cost.name}", *numbers[: 2 + attention], style=style)

    for cost in costs:
        if cost is costs[-1]:
            table.add_section()
        add(cost)
        for part in cost.components:
            add(part, "  ", "dim")
    return table
