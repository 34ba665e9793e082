"""Read PassionSR's official calibrated checkpoints: quantizers and LET of every layer, no weights.

Keys are `model.model.<ldm name>.<tensor>`. docs/theory.md, "PassionSR's checkpoints".
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from intsr.calib.models.tensor_files import check_is_data
from intsr.calib.passionsr.names import LdmNames, ldm_names
from intsr.calib.passionsr.types import PassionSRAttention, PassionSRLayer, PassionSRQuantizers
from intsr.errors import CalibrationError
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

PREFIX = "model.model."
# The official model splits every layer of the UNet, and no layer of the VAE.
PIECES = {"unet": 2, "vae": 1}
# The official model's names of ATTENTION_ROLES.
ROLE_LETTERS = ("q", "k", "w", "v")
ENDS = ("x_min", "x_max")
# Parts of ldm names that the official code keeps at 8 bits.
EIGHT_BIT_NAMES = ("time_embed.0", "out.2", "quant_conv", "post_quant_conv", "encoder.conv_out", "decoder.conv_out")
SHOWN_KEYS = 3

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class PassionSRCheckpoint:
    """The content of the files of a calibrated model."""

    # What the files are of.
    parts: tuple[str, ...]
    quantizers: PassionSRQuantizers
    # Site -> (weight, bias).
    norms: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def read_passionsr(unet: Path, vae: Path | None, model: SRModel, bits: Bits) -> PassionSRCheckpoint:
    """Read and check the files of a calibrated `model`; without `vae` only the UNet is quantized.

    bits: what the files were calibrated for, which they do not say.

    Raises CalibrationError for a file that is no plain checkpoint, a key too many or too few, a shape that does not
    fit the model, or a range that is empty or not finite.
    """
    layers: dict[str, PassionSRLayer] = {}
    attentions: dict[str, PassionSRAttention] = {}
    norms: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    files = {"unet": unet} if vae is None else {"unet": unet, "vae": vae}
    for part, path in files.items():
        names = ldm_names(model, part)
        tensors = _read_tensors(path)
        shapes = expected_shapes(model, part, names)
        _check(tensors, shapes, path)
        for site, name in names.layers.items():
            layers[site] = _layer(tensors, name, site in names.convolutions, PIECES[part], bits)
        for site, name in names.attentions.items():
            attentions[site] = _attention(tensors, name, bits)
        for site, name in names.norms.items():
            norms[site] = (tensors[f"{PREFIX}{name}.weight"], tensors[f"{PREFIX}{name}.bias"])
    return PassionSRCheckpoint(tuple(files), PassionSRQuantizers(layers, attentions), norms)


def expected_shapes(model: SRModel, part: str, names: LdmNames) -> dict[str, tuple[int, ...] | None]:
    """Every key of a checkpoint of this part, with its shape; None where the number of tokens decides: (tokens,)."""
    network: nn.Module = getattr(model, part)
    shapes: dict[str, tuple[int, ...] | None] = {}

    def add_range(key: str, shape: tuple[int, ...] = ()) -> None:
        shapes.update({f"{key}.x_min": shape, f"{key}.x_max": shape})

    for site, name in names.layers.items():
        layer = network.get_submodule(site.partition(".")[2])
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        rows, columns = layer.weight.shape[:2]
        tail = (1, 1) if site in names.convolutions else ()
        key = PREFIX + name
        shapes |= {f"{key}.scale_factor": (1, columns, *tail), f"{key}.offset": (1, columns, *tail)}
        if layer.bias is not None:
            add_range(f"{key}.bias_quantizer")
        for piece in range(PIECES[part]):
            add_range(f"{key}.weight_quantizer_{piece}", (rows, 1, *tail))
            add_range(f"{key}.act_quantizer_{piece}")
    for site, name in names.attentions.items():
        head_channels = _head_channels(network.get_submodule(site.partition(".")[2]))
        shapes |= {f"{PREFIX}{name}.scale_factor_qk": (head_channels,), f"{PREFIX}{name}.scale_factor_vw": None}
        for role in ROLE_LETTERS:
            add_range(f"{PREFIX}{name}.act_quantizer_{role}")
    for site, name in names.norms.items():
        norm = network.get_submodule(site.partition(".")[2])
        shape = tuple(norm.weight.shape)  # type: ignore[union-attr, arg-type]
        shapes |= {f"{PREFIX}{name}.weight": shape, f"{PREFIX}{name}.bias": shape}
    return shapes


def _head_channels(attention: nn.Module) -> int:
    return int(attention.to_q.out_features) // int(attention.heads)  # type: ignore[union-attr, arg-type]


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    expected = "a checkpoint of tensors alone: unet_ckpt_merge_saw_sep.pth, vae_ckpt_merge_saw_sep.pth"
    check_is_data(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        got = "a pickle that holds more than tensors, or none: it was not run"
        raise CalibrationError(path, got, expected) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        raise CalibrationError(path, f"cannot be read ({str(error)[:200]})", expected) from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise CalibrationError(path, "no table of tensors", expected)
    return {str(key): value for key, value in values.items()}


def _check(tensors: Tensors, shapes: Mapping[str, tuple[int, ...] | None], path: Path) -> None:
    missing, unexpected = ([k for k in a if k not in b] for a, b in ((shapes, tensors), (tensors, shapes)))
    if missing or unexpected:
        found = [f"{len(k)} keys {kind} ({', '.join(k[:SHOWN_KEYS])})" for kind, k in
                 (("missing", missing), ("unexpected", unexpected)) if k]  # fmt: skip
        fix = "give the UNet's file and the VAE's of one calibration, and the model they were made for"
        raise CalibrationError(path, " and ".join(found), f"the {len(shapes)} keys of this architecture", fix)
    for key, shape in shapes.items():
        tensor = tensors[key]
        fits = tensor.ndim == 1 and len(tensor) > 0 if shape is None else tuple(tensor.shape) == shape
        if not fits or not tensor.is_floating_point():
            got = f"{key} is {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise CalibrationError(path, got, "(tokens,)" if shape is None else f"floats of shape {shape}")
        if not torch.isfinite(tensor).all():
            raise CalibrationError(path, f"NaN or infinity in {key}", "finite values")
        if "scale_factor" in key and not bool((tensor > 0).all()):
            raise CalibrationError(path, f"{key} is not above 0", "scales above 0")
        if key.endswith(".x_min") and not bool((tensor < tensors[f"{key[:-3]}max"]).all()):
            raise CalibrationError(path, f"{key} is not below its x_max", "a range of some width")


def _layer(tensors: Tensors, name: str, convolution: bool, pieces: int, bits: Bits) -> PassionSRLayer:
    key = PREFIX + name
    has_bias = f"{key}.bias_quantizer.x_min" in tensors
    weight_bits, activation_bits = bits_of_ldm_name(name, bits)
    weights = [f"{key}.weight_quantizer_{piece}" for piece in range(pieces)]
    inputs = [f"{key}.act_quantizer_{piece}" for piece in range(pieces)]
    return PassionSRLayer(
        convolution=convolution,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        scale=_float32(tensors[f"{key}.scale_factor"]),
        offset=_float32(tensors[f"{key}.offset"]),
        weight_low=np.stack([_float32(tensors[f"{weight}.x_min"]) for weight in weights]),
        weight_high=np.stack([_float32(tensors[f"{weight}.x_max"]) for weight in weights]),
        input_low=_float64(tensors, [f"{value}.x_min" for value in inputs]),
        input_high=_float64(tensors, [f"{value}.x_max" for value in inputs]),
        bias_range=_float64(tensors, [f"{key}.bias_quantizer.{end}" for end in ENDS]) if has_bias else None,
    )


def _attention(tensors: Tensors, name: str, bits: Bits) -> PassionSRAttention:
    assert bits.activations is not None
    low, high = (
        _float64(tensors, [f"{PREFIX}{name}.act_quantizer_{letter}.{end}" for letter in ROLE_LETTERS]) for end in ENDS
    )
    scale_qk, scale_vw = (_float32(tensors[f"{PREFIX}{name}.scale_factor_{pair}"]) for pair in ("qk", "vw"))
    return PassionSRAttention(bits.activations, scale_qk, scale_vw, low, high)


def bits_of_ldm_name(name: str, bits: Bits) -> tuple[int, int]:
    """(weight bits, activation bits) of a layer by its ldm name."""
    assert bits.weights is not None and bits.activations is not None
    return (8, 8) if any(part in name for part in EIGHT_BIT_NAMES) else (bits.weights, bits.activations)


def _float32(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().flatten().numpy().astype(np.float32)


def _float64(tensors: Tensors, keys: list[str]) -> NDArray[np.float64]:
    """Scalars: the official model keeps them in float64, whatever the file has."""
    return np.array([float(tensors[key].double()) for key in keys], np.float64)
