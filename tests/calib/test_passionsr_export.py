"""Imported calibrations through folding, ONNX and the CPU engine, against the torch import."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from folding import fold
from PIL import Image
from torch import nn

from intsr.calib.models.families.sd21 import is_constant, network_of_site
from intsr.calib.models.reference import reference_networks
from intsr.calib.passionsr.forward import PassionSRQuantizedLayer, passionsr_model
from intsr.calib.passionsr.import_checkpoint import import_passionsr
from intsr.calib.passionsr.types import PassionSRQuantizers
from intsr.errors import CalibrationError, ExportError
from intsr.export.fold.fold import FoldedNetwork, fake_quantized
from intsr.export.fold.split_layers import SplitLayer
from intsr.export.lower.network import lower_network
from intsr.runtime.measure.metrics import psnr_db_from_mse as psnr_db
from intsr.targets import lowering_from_name
from intsr.types import NETWORKS, Bits

TILE_PX = 8
# Relative to the output: float rounding, a single flipped code, and what no flipped code explains.
ROUNDING, FLIPPED = 1e-6, 5e-3


def run_onnx(network: FoldedNetwork, x: torch.Tensor, path: Path, lowering: str = "cpu") -> torch.Tensor:
    import onnxruntime

    model, _, _ = lower_network(network, lowering_from_name(lowering), tuple(x.shape))
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def layer_inputs(official: Any, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Site -> (input, output) of every layer of the torch import."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for site, module in official.modules.named_modules():
        if isinstance(module, PassionSRQuantizedLayer):
            module.register_forward_hook(lambda _, args, y, site=site: seen.update({site: (args[0], y)}))
    with torch.no_grad():
        for network in reference_networks(official).values():
            x = network(x)
    return seen


def alone(network: FoldedNetwork, site: str) -> FoldedNetwork:
    """One layer as a network."""
    inside = {name: layer for name, layer in network.layers.items() if name.startswith(f"{site}.")}
    layers = {name.replace(site, "0"): layer for name, layer in inside.items()}
    return FoldedNetwork("unet", nn.Sequential(network.module.get_submodule(site)), layers)


def relative_errors(
    model: Any, calibration: Any, x: torch.Tensor, run: Callable[..., torch.Tensor], every: int
) -> Any:
    """rms error of single layers on the torch import's own inputs, relative to their outputs."""
    official = passionsr_model(model, PassionSRQuantizers.from_calibration(calibration))
    seen, errors = layer_inputs(official, x), {}
    for name in NETWORKS:
        network = fold(model, calibration)[name]
        sites = [s for s in calibration.imported["layers"] if network_of_site(s) == name and not is_constant(s)]
        for site in sites[::every]:
            layer = network.module.get_submodule(site)
            assert isinstance(layer, SplitLayer)
            given, expected = seen[site]
            y = run(alone(network, site), given * layer.divisor) / layer.factor
            expected = expected[:, : y.shape[1]] if y.ndim == 4 else expected
            if name == "unet" and site.endswith(".conv1"):
                # The time's share of the bias is a constant of each channel.
                expected = expected + (y - expected).mean((0, 2, 3), keepdim=True)
            errors[site] = float((y - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    return errors


@torch.no_grad()
def run_torch(network: FoldedNetwork, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = fake_quantized(network)(x)
    return y


@pytest.fixture(scope="module")
def calibration(passionsr_files: list[Path], tiny_model: Any) -> Any:
    return import_passionsr(tiny_model, passionsr_files, Bits.parse("w6a6"), TILE_PX)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize(("bits", "every"), [("w6a6", 1), ("w8a8", 7), ("w4a8", 7)])
def test_layers_in_torch(
    tiny_model: Any, passionsr_files: list[Path], picture: torch.Tensor, bits: str, every: int
) -> None:
    """Same operations up to the product: no code may differ."""
    calibration = import_passionsr(tiny_model, passionsr_files, Bits.parse(bits), TILE_PX)
    errors = relative_errors(tiny_model, calibration, picture, run_torch, every)
    layers = [site for site in calibration.imported["layers"] if not is_constant(site)]
    assert len(errors) >= len(layers) // every
    assert max(errors.values()) < ROUNDING, max(errors, key=lambda site: errors[site])


def check_in_onnx(model: Any, calibration: Any, x: torch.Tensor, path: Path) -> None:
    errors = relative_errors(model, calibration, x, lambda network, x: run_onnx(network, x, path), every=12)
    assert np.median(list(errors.values())) < ROUNDING
    assert max(errors.values()) < FLIPPED
    assert sum(error > 10 * ROUNDING for error in errors.values()) <= 2


def test_layers_in_onnx(tiny_model: Any, calibration: Any, picture: torch.Tensor, tmp_path: Path) -> None:
    check_in_onnx(tiny_model, calibration, picture, tmp_path / "layer.onnx")


@pytest.mark.slow
def test_reference_layers_in_onnx(reference: Any, tmp_path: Path) -> None:
    check_in_onnx(reference.model, reference.calibration, reference.inputs["image"], tmp_path / "layer.onnx")


@torch.no_grad()
def test_attention_and_constants_in_torch(tiny_model: Any, calibration: Any, picture: torch.Tensor) -> None:
    """Whole networks, each on the torch import's input: apart from flipped codes they agree to the last digits."""
    official = passionsr_model(tiny_model, PassionSRQuantizers.from_calibration(calibration))
    folded, x = fold(tiny_model, calibration), picture
    for name, network in reference_networks(official).items():
        y, expected = fake_quantized(folded[name])(x), network(x)
        span = float(expected.max() - expected.min())
        assert psnr_db(float((y - expected).square().mean()), span) > 30, name
        x = expected


def test_a_padded_border_is_exact(tiny_model: Any, calibration: Any) -> None:
    """conv0(o 1, W) differs at the border: a constant bias in its place would be seen there."""
    network = fold(tiny_model, calibration)["decoder"]
    site = "vae.decoder.conv_in"
    layer: Any = network.module.get_submodule(site)
    assert layer.has_border
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    official = PassionSRQuantizedLayer(
        tiny_model.vae.decoder.conv_in, PassionSRQuantizers.from_calibration(calibration).layers[site]
    )
    difference = run_torch(alone(network, site), x) - official(x)
    assert difference[..., 0, :].abs().max() < 1e-5 and difference[..., 0, 0].abs().max() < 1e-5


@pytest.mark.slow
def test_other_targets_take_it(tiny_model: Any, calibration: Any, picture: torch.Tensor, tmp_path: Path) -> None:
    """int8 containers round halves to even and shift: the same grids, so that only flipped codes differ."""
    network = fold(tiny_model, calibration)["encoder"]
    official = passionsr_model(tiny_model, PassionSRQuantizers.from_calibration(calibration))
    with torch.no_grad():
        expected = reference_networks(official)["encoder"](picture)
    y = run_onnx(network, picture, tmp_path / "encoder.onnx", "symmetric-f32")
    assert psnr_db(float((y - expected).square().mean()), float(expected.max() - expected.min())) > 25


def test_a_tile_of_other_tokens_cannot_be_exported(tiny_model: Any, calibration: Any) -> None:
    network = fold(tiny_model, calibration)["unet"]
    with pytest.raises(ExportError, match="tokens"):
        lower_network(network, lowering_from_name("cpu"), (1, 4, 32, 32))


def test_a_layer_without_numbers(tiny_model: Any, calibration: Any) -> None:
    layers = {site: q for site, q in calibration.imported["layers"].items() if site != "unet.conv_out"}
    with pytest.raises(CalibrationError, match=r"nothing for unet\.conv_out"):
        fold(tiny_model, replace(calibration, imported={**calibration.imported, "layers": layers}))


@pytest.mark.slow
def test_from_the_command_line(intsr: Any, tiny_folder: Path, passionsr_files: list[Path], tmp_path: Path) -> None:
    """Import, export (from the files and from the folder: the same graphs), compile, verify."""
    unet, vae = passionsr_files
    folder, engine = tmp_path / "official", tmp_path / "official.engine"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(pictures / "a.png")
    options = ("--bits", "w6a6", "--tile", TILE_PX)
    code, out, error = intsr("calibrate", tiny_folder, "--passionsr", unet, vae, *options, "-o", folder, "--json")
    assert code == 0 and json.loads(out)["method"] == "passionsr-official" and "sign slip" in error
    code, out, _ = intsr("inspect", folder, "--json")
    assert code == 0 and json.loads(out)["calibration"]["bits"] == "w6a6"
    graphs = []
    for number, source in enumerate((("--passionsr", unet, vae, *options), ("--calibration", folder, *options[2:]))):
        export = tmp_path / f"onnx{number}"
        assert intsr("export", tiny_folder, *source, "-o", export)[0] == 0
        graphs.append({path.name: path.read_bytes() for path in export.iterdir() if path.suffix != ".json"})
    assert len(graphs[0]) >= 3 and graphs[0] == graphs[1]
    code, out, error = intsr(
        *("compile", tiny_folder, "--passionsr", unet, vae, *options, "--precision", "f32", "-o", engine, "--json")
    )
    assert code == 0, error
    share = json.loads(out)["networks"]["encoder"]["int8_mac_share"]
    # Of six bits, whatever this CPU is.
    assert share > 0.9
    code, out, error = intsr(
        *("verify", engine, "--against", folder, "--model", tiny_folder, "--images", pictures),
        *("--precision", "f32", "--min-psnr", 10, "--json"),
    )
    assert code == 0, error
    assert min(network["psnr_db"] for network in json.loads(out)["networks"]) > 30


def test_what_changes_nothing_or_does_not_fit_is_refused(
    intsr: Any, tiny_folder: Path, passionsr_files: list[Path], tmp_path: Path
) -> None:
    files = ("--passionsr", *passionsr_files)
    for command, arguments, message in (
        ("export", (*files, "--calibration", "c"), "--calibration, --passionsr: both; expected one of them"),
        ("export", (*files, "--bits", "fp"), "--bits"),
        ("export", (*files, "--tile", "16"), "use --tile 8"),
        ("export", (*files, "--tile", "8,16"), "the one size that the checkpoint was made for"),
        ("export", ("--bits", "w6a6"), "--bits: without --passionsr"),
        ("calibrate", (*files, "--tile", TILE_PX, "--method", "lsq"), "--method: together with --passionsr"),
        ("calibrate", (*files, "--tile", TILE_PX, "--images", "x"), "both or neither"),
        ("calibrate", (*files, "--tile", TILE_PX, "--bits", "fp"), "--bits"),
    ):
        code, _, error = intsr(command, tiny_folder, *arguments, "-o", tmp_path / "out")
        assert code == 2 and message in error, (command, arguments, error)
        assert not (tmp_path / "out").exists()
