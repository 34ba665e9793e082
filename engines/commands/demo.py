"""`intsr demo`."""

from __future__ import annotations

from pathlib import Path

import click

from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH


@click.command(epilog="Example: intsr demo -o build/demo")
@click.option("-o", "--output", type=PATH, default=Path("build/demo"), show_default=True)
@common_options
def demo(output: Path, as_json: bool) -> None:
    """Calibrate, export, compile, upscale and report, with the bundled model on real photographs."""
    from intsr.engines.demo.run import run_demo
    from intsr.files import check_writable_folder

    check_writable_folder(output)
    summary = run_demo(output)
    say(
        f"\n{output}: a 128x128 photograph upscaled to 512x512\n"
        f"  PSNR-Y against the original: bicubic {summary['psnr_bicubic_db']:.2f} dB, "
        f"fp32 {summary['psnr_fp32_db']:.2f} dB, int8 {summary['psnr_int8_db']:.2f} dB\n"
        f"  one picture takes: torch fp32 {summary['torch_fp32_ms']:.0f} ms, "
        f"cpu fp32 {summary['cpu_fp32_ms']:.0f} ms, cpu int8 {summary['cpu_int8_ms']:.0f} ms\n"
        f"  engine {summary['engine_bytes'] / 1e6:.1f} MB, RTX engine {summary['rtx_engine_bytes'] / 1e6:.1f} MB, "
        f"{summary['seconds']:.0f} s in all\n"
        f"  look at {output}/bicubic.png beside {output}/sr_int8.png"
        + (f", or open {output}/{summary['report']} in a browser" if summary["report"] else "")
    )
    if as_json:
        emit_json(summary)
