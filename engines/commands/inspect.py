"""`intsr inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from intsr.cli.console import common_options, emit_json
from intsr.cli.options import PATH
from intsr.types import SYNTHETIC_NOTE

SHOWN = (
    *("model", "method", "bits", "target", "library", "library_version", "gpu_architecture", "precision"),
    "tile_px",
)


@click.command(
    epilog="Example: intsr inspect demo.engine --layers",
    short_help="What is in an .engine file, down to its kernels, or in a calibration folder.",
)
@click.argument("path", type=PATH)
@click.option("--layers", is_flag=True, help="An engine's finished plan, or one line for each calibrated layer.")
@click.option("--against", type=PATH, help="Another engine, to compare the finished plan with.")
@common_options
def inspect(path: Path, layers: bool, against: Path | None, as_json: bool) -> None:
    """Show what is in PATH, an .engine file or a calibration folder.

    An engine: manifest, sizes and, with --layers, what the builder made of each network: kernels by kind, int8
    share, memory; with --against, how many times the kernels and the memory of another engine, say the fp one. A
    calibration: how it was made, and how many of its layers have a LET that folds for free, or learned weights; with
    --layers, each layer's range.
    """
    if path.is_dir():
        _inspect_calibration(path, layers, as_json)
        return
    from intsr.engines.inspect.engine import compare_plans, inspect_engine

    report = inspect_engine(path, layers or against is not None)
    if against is not None:
        report["against"] = {"path": str(against), "ratios": compare_plans(report, against)}
    if as_json:
        emit_json(report)
        return
    manifest = report["manifest"]
    if manifest["synthetic"]:
        click.echo(SYNTHETIC_NOTE)
    click.echo("\n".join(f"{key:<18} {manifest[key]}" for key in SHOWN if manifest[key] != ""))
    for key, value in report["run_facts"].items():
        click.echo(f"{key:<18} {value}")
    if len(report["tile_sizes"]) > 1:
        click.echo(f"{'tile sizes':<18} {', '.join(map(str, report['tile_sizes']))}")
    if manifest["chunk"] is not None:
        click.echo(
            f"{'chunk':<18} {manifest['chunk']['frames']} frames, {manifest['chunk']['overlap_frames']} shared"
        )
    for member in report["members"]:
        click.echo(f"{member['name']:<18} {member['size_bytes'] / 1e6:9.2f} MB  sha256 {member['sha256'][:12]}")
        if "codes" in member:
            kinds = ", ".join(f"{count / 1e6:.2f} M of {bits} bits" for bits, count in member["codes"].items())
            click.echo(f"{'':<18} {member['unpacked_bytes'] / 1e6:9.2f} MB in memory; packed codes: {kinds}")
    if "branches" in report["manifest"]["build"]:
        shares = report["manifest"]["build"]["branches"]
        click.echo(f"branches: {shares['parameter_share']:.2%} of weights, {shares['mac_share']:.2%} of MACs")
    if layers and not report["networks"]:
        click.echo("no plan was recorded: this target compiles when the engine is opened")
    elif layers:
        for plan in [*report["networks"], {"name": "total", **report["total"]}]:
            _show_plan(plan)
    for ratio in report["against"]["ratios"] if against is not None else ():
        parts = ", ".join(f"{key.removesuffix('_bytes')} x {ratio[key]:.2f}" for key in ratio if key != "name")
        click.echo(f"{ratio['name']:<8} against {against}: {parts}")


def _show_plan(plan: dict[str, Any]) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in plan["kernels_by_kind"].items())
    facts = [f"int8 share of conv and linear MACs {plan['int8_mac_share']:.2%}"]
    # Targets other than TensorRT do not tell these.
    if plan.get("int8_weight_share", 0.0) > plan["int8_mac_share"]:
        facts.append(f"with weight-only layers {plan['int8_weight_share']:.2%}")
    facts.append(f"fp32 GEMMs {plan['fp32_gemms']}")
    if "quantize_kernels" in plan:
        facts.append(f"kernels that only quantize {plan['quantize_kernels']}, reformat {plan['reformat_kernels']}")
    facts += [f"{kind}s {plan[f'{kind}_bytes'] / 1e6:.1f} MB" for kind in ("activation", "weight")]
    click.echo(f"{plan['name']:<8} {plan['kernels']} kernels: {kinds}")
    click.echo(f"{'':<8} {', '.join(facts)}")


def _inspect_calibration(folder: Path, layers: bool, as_json: bool) -> None:
    from intsr.engines.inspect.calibration import inspect_calibration

    report = inspect_calibration(folder)
    if as_json:
        emit_json(report)
        return
    facts = report["calibration"]
    let, weights = facts["let"], facts["weights"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["layers"].items() if count)
    shown = {key: facts[key] for key in ("method", "bits", "model")} | {
        "parts": ", ".join(facts["parts"]),
        "pictures": facts["pictures"],
        "seconds": f"{facts['seconds']:.1f}",
        "sites": f"{facts['sites']}: {kinds}",
        "LET": f"{let['sites']} sites: {let['free']} free, {let['explicit']} with an explicit step, "
        f"{let['shifted']} with a shift",
        "learned weights": f"{weights['ranges']} ranges, {weights['codes']} codes",
    }
    if facts["phases"]:
        shown["in phases"] = f"{len(facts['phases'])} upsamplers"
    if facts["perceptual"]:
        shown["pictures by"] = f"squared error and {facts['perceptual']}"
    if facts["tiers"]:
        shown["trained"] = ", ".join(f"{count} {tier}" for tier, count in facts["tiers"].items())
    for kind, worst in (facts["most_clipped"] or {}).items():
        shown[f"clipped, {kind}"] = f"at most {worst['share']:.2%}, in {worst['site']}"
    click.echo("\n".join(f"{key:<18} {value}" for key, value in shown.items()))
    if layers:
        width = max((len(site["site"]) for site in report["sites"]), default=0)
        for site in report["sites"]:
            click.echo(f"{site['site']:<{width}}  {_site_line(site)}")


def _site_line(site: dict[str, Any]) -> str:
    words = [
        f"{site['runs']:<8}",
        f"w{site['weight_bits']}a{site['activation_bits']}",
        f"[{site['x_min']:.4g}, {site['x_max']:.4g}]",
    ]
    if site["let"]:
        let = site["let"]
        words.append(f"s {let['scale_min']:.3g} to {let['scale_max']:.3g} (x{let['scale_spread']:.3g})")
        words.append(let["placement"] or "left out")
        words.append("shift" if let["shift"] else "no shift")
    if site["weights"]:
        words.append(f"weight {site['weights']}")
    if site["sensitivity"]:
        words.append(f"sensitivity {site['sensitivity']['variance']:.3g}, {site['sensitivity']['tier']}")
    if site["clipped"]:
        words.append(f"outside {site['clipped']['pictures']:.2%}, of the guard's {site['clipped']['guard']:.2%}")
    return "  ".join(words)
