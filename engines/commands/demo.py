"""`intsr demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH
from intsr.errors import UsageError


@click.command(epilog="Example: intsr demo -o build/demo")
@click.option("-o", "--output", type=PATH, help="Default: build/demo, build/demo-video or build/demo.engine.")
@click.option("--video", is_flag=True, help="A film and the bundled video model (extra `video`).")
@click.option("--engine-only", is_flag=True, help="An engine for the CPU alone, in W8A8 by maxmin+let.")
@common_options
def demo(output: Path | None, video: bool, engine_only: bool, as_json: bool) -> None:
    """Calibrate, export, compile, upscale and report, with the bundled model on real photographs."""
    from intsr.files import check_output_file, check_writable_folder

    if engine_only:
        if video:
            raise UsageError("--engine-only", "together with --video", "one of them")
        from intsr.engines.demo.run import engine_alone

        output = output or Path("build/demo.engine")
        check_output_file(output)
        engine_alone(output)
        say(str(output))
        if as_json:
            emit_json({"engine": str(output), "engine_bytes": output.stat().st_size})
        return
    output = output or Path("build/demo-video" if video else "build/demo")
    check_writable_folder(output)
    summary = _video(output) if video else _pictures(output)
    if as_json:
        emit_json(summary)


def _pictures(output: Path) -> dict[str, Any]:
    from intsr.engines.demo.run import run_demo

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
    return summary


def _video(output: Path) -> dict[str, Any]:
    from intsr.engines.demo.video import run_video_demo

    summary = run_video_demo(output)
    rows = {"bicubic": "bicubic", "picture_model": "picture model, fp32", "fp32": "fp32", "int8": "int8"}
    say(f"\n{output}: a film of {summary['frames']} frames, 112x112 upscaled to 448x448")
    for kind, words in rows.items():
        say(f"  {words:<20} {summary[f'psnr_{kind}_db']:.2f} dB, flicker {summary[f'flicker_{kind}']:.2f} levels")
    say(f"  {summary['seconds']:.0f} s in all; look at {output}/sr_int8.mp4, or {output}/lr beside {output}/sr_int8")
    return summary
