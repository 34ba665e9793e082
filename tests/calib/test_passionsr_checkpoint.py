"""Reading official checkpoints: every key and shape, what is refused, and the checks against the base model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from passionsr import sd21_on_meta
from safetensors.torch import load_file, save_file

from intsr.calib.calibration.files import load_calibration, save_calibration
from intsr.calib.models.sites import sites_of_model
from intsr.calib.passionsr.import_checkpoint import expected_shapes, import_passionsr
from intsr.calib.passionsr.layout import PREFIX, checkpoint_layout
from intsr.calib.passionsr.types import PassionSRQuantizers
from intsr.cli.options import spread_values
from intsr.errors import CalibrationError, ModelError, UsageError
from intsr.types import Bits

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "passionsr_reference"
TILE_PX = 8
W8A8 = Bits.parse("w8a8")


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="reference data is not here")
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_full_size_keys_and_shapes(part: str) -> None:
    path = REFERENCE / f"full_keys_{part}.json"
    shapes = expected_shapes(checkpoint_layout(sd21_on_meta(), part))
    official = {key: tuple(value["shape"]) for key, value in json.loads(path.read_text())["keys"].items()}
    assert len(official) == {"unet": 3730, "vae": 680}[part]
    assert set(shapes) == set(official)
    assert {key for key, shape in shapes.items() if shape is None} == {k for k in shapes if k.endswith("_vw")}
    assert {k: v for k, v in shapes.items() if v} == {k: official[k] for k, shape in shapes.items() if shape}


def test_reads_every_layer(passionsr_files: list[Path], tiny_model: Any) -> None:
    calibration = import_passionsr(tiny_model, passionsr_files, Bits.parse("w6a4"), TILE_PX)
    layers = PassionSRQuantizers.from_calibration(calibration).layers
    assert set(layers) == set(calibration.sites) == set(sites_of_model(tiny_model, ("unet", "vae")))
    eight = {site for site, layer in layers.items() if (layer.weight_bits, layer.activation_bits) != (6, 4)}
    # As the official code has it.
    assert {layers[site].weight_bits for site in eight} == {8} and eight == {
        *("unet.time_embedding.linear_1", "unet.conv_out", "vae.encoder.conv_out", "vae.decoder.conv_out"),
        *("vae.quant_conv", "vae.post_quant_conv"),
    }
    layer, key = layers["unet.up_blocks.0.resnets.0.conv1"], f"{PREFIX}output_blocks.0.0.in_layers.2"
    tensors = torch.load(passionsr_files[0], weights_only=True)
    assert layer.convolution and not layers["unet.time_embedding.linear_1"].convolution
    assert layer.offset.tolist() == tensors[f"{key}.offset"].flatten().tolist()
    assert layer.weight_high[1].tolist() == tensors[f"{key}.weight_quantizer_1.x_max"].flatten().tolist()
    assert layer.input_low[1] == tensors[f"{key}.act_quantizer_1.x_min"].double()


def test_safetensors_and_the_unet_alone(passionsr_files: list[Path], tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    save_file({k: v.contiguous() for k, v in torch.load(passionsr_files[0], weights_only=True).items()}, path)
    calibration = import_passionsr(tiny_model, [path], W8A8, TILE_PX)
    assert calibration.parts == ("unet",)
    assert all(site.startswith("unet.") for site in calibration.sites)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            *(0, lambda t: t.update({f"{PREFIX}extra": t.pop(f"{PREFIX}out.2.offset")})),
            f"1 keys missing ({PREFIX}out.2.offset) and 1 keys unexpected ({PREFIX}extra)",
        ),
        (0, lambda t: t.update({f"{PREFIX}out.2.offset": torch.ones(1, 3, 1, 1)}), "of shape (1, 3, 1, 1)"),
        (0, lambda t: t.update({f"{PREFIX}out.2.offset": t[f"{PREFIX}out.2.offset"] / 0}), "NaN or infinity"),
        (1, lambda t: t.update({f"{PREFIX}quant_conv.act_quantizer_0.x_max": torch.tensor(-9.0)}), "not below"),
        (0, lambda t: t[f"{PREFIX}out.0.weight"].add_(0.1), "unet.conv_norm_out.weight differs by 0.1"),
        (1, lambda t: t[f"{PREFIX}encoder.conv_in.scale_factor"].mul_(-1), "not above 0"),
        (1, lambda t: t[f"{PREFIX}encoder.conv_in.scale_factor"].mul_(3), "miss the model's weights"),
    ],
)
def test_what_does_not_fit_is_refused(
    passionsr_files: list[Path], tiny_model: Any, tmp_path: Path, *, part: int, change: Any, message: str
) -> None:
    tensors, files = torch.load(passionsr_files[part], weights_only=True), list(passionsr_files)
    change(tensors)
    files[part] = tmp_path / "changed.pth"
    torch.save(tensors, files[part])
    with pytest.raises(CalibrationError) as error:
        import_passionsr(tiny_model, files, W8A8, TILE_PX)
    assert message in str(error.value)


def test_a_base_without_the_lora(passionsr_files: list[Path], tiny_model: Any) -> None:
    """Every UNet weight off by about 15 % of its size, as where an adapter was not merged."""
    unet, generator = copy.deepcopy(tiny_model.unet), torch.Generator().manual_seed(1)
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter * (1 + 0.15 * torch.randn(parameter.shape, generator=generator))
    with pytest.raises(CalibrationError, match=r"unet by .* with OSEDiff's LoRA merged"):
        import_passionsr(replace(tiny_model, unet=unet), passionsr_files, W8A8, TILE_PX)


class _RunsCode:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


def test_a_pickle_that_runs_code_is_refused(
    passionsr_files: list[Path], tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "unet.pth"
    torch.save({"a": _RunsCode()}, path)
    with pytest.raises(ModelError, match=r"unet\.pth: refused: unpickling it would run code"):
        import_passionsr(tiny_model, [path, passionsr_files[1]], W8A8, TILE_PX)
    assert "this ran" not in capsys.readouterr().out


def test_other_tiles_and_contexts_are_refused(passionsr_files: list[Path], tiny_model: Any) -> None:
    with pytest.raises(CalibrationError, match="use --tile 8"):
        import_passionsr(tiny_model, passionsr_files, W8A8, 2 * TILE_PX)
    longer = replace(tiny_model, context=torch.cat([tiny_model.context] * 2, dim=1))
    with pytest.raises(CalibrationError, match="give the context with --context"):
        import_passionsr(longer, passionsr_files, W8A8, TILE_PX)
    with pytest.raises(UsageError, match="--bits"):
        import_passionsr(tiny_model, passionsr_files, Bits(None, None), TILE_PX)


def test_a_folder_keeps_every_number(passionsr_files: list[Path], tiny_model: Any, tmp_path: Path) -> None:
    calibration = import_passionsr(tiny_model, passionsr_files, W8A8, TILE_PX)
    save_calibration(calibration, tmp_path / "official")
    loaded = load_calibration(tmp_path / "official")
    assert loaded.folding == "passionsr" and loaded.digest() == calibration.digest()
    quantizers = PassionSRQuantizers.from_calibration(loaded)
    layer = quantizers.layers["unet.conv_out"]
    changed_layers = {**quantizers.layers, "unet.conv_out": replace(layer, input_low=layer.input_low - 1e-9)}
    records = replace(quantizers, layers=changed_layers).records()
    assert replace(calibration, imported=records).digest() != calibration.digest()


def test_a_folder_with_a_tensor_less_is_refused(passionsr_files: list[Path], tiny_model: Any, tmp_path: Path) -> None:
    save_calibration(import_passionsr(tiny_model, passionsr_files, W8A8, TILE_PX), tmp_path)
    path = tmp_path / "ranges.safetensors"
    tensors = load_file(path)
    del tensors["unet.conv_out.official.scale"]
    save_file(tensors, path)
    with pytest.raises(CalibrationError, match=r"layers: .*scale"):
        PassionSRQuantizers.from_calibration(load_calibration(tmp_path))
    save_file({key: value for key, value in tensors.items() if "conv_out.official" not in key}, path)
    with pytest.raises(CalibrationError, match="tensors without facts"):
        load_calibration(tmp_path)


def test_facts_of_another_type_are_refused(passionsr_files: list[Path], tiny_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "official"
    save_calibration(import_passionsr(tiny_model, passionsr_files, W8A8, TILE_PX), folder)
    values = json.loads((folder / "calibration.json").read_text())
    facts = values["official"]["layers"]["unet.conv_out"]
    for key, value in (("weight_bits", 9), ("activation_bits", True), ("convolution", 1)):
        before = facts[key]
        facts[key] = value
        (folder / "calibration.json").write_text(json.dumps(values))
        with pytest.raises(CalibrationError, match=key):
            PassionSRQuantizers.from_calibration(load_calibration(folder))
        facts[key] = before


@pytest.mark.parametrize("text", ["--passionsr a.pth model", "--passionsr a.pth -o x.pth", "--other a.pth b.pth"])
def test_only_a_second_file_of_the_kind_is_a_second_value(text: str) -> None:
    assert spread_values(text.split(), {"--passionsr"}) == text.split()
    two = ["m", "--passionsr", "a.pth", "--passionsr", "b.pth", "-o", "x"]
    assert spread_values([*two[:3], *two[4:]], {"--passionsr"}) == two
