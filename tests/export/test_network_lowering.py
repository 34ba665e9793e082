"""Exported graphs, in ONNX Runtime, against the torch reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from folding import Folded, Modules, fold
from low_bits import with_branches, with_rotations
from numpy.typing import NDArray

from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.calib.models.families.sd21 import input_groups
from intsr.calib.models.families.supported import ACTIVATIONS
from intsr.calib.models.modules import layers_of
from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.phases import in_phases
from intsr.calib.models.reference import reference_networks
from intsr.calib.observe.fake_quant import FakeQuantLayer
from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedNetwork, fake_quantized
from intsr.export.lower.network import lower_network
from intsr.export.lower.write.activations import plan_grid
from intsr.kernels.layer_algebra import transform
from intsr.kernels.rotation import rotate
from intsr.targets.lowering import LOWERINGS, Lowering
from intsr.types import NETWORKS, Bits

F32 = NDArray[np.float32]


def psnr_db(got: F32, expected: F32) -> float:
    """Peak = the expected tensor's own range."""
    return float(20 * np.log10(np.ptp(expected)) - 10 * np.log10(np.mean((got - expected) ** 2) + 1e-30))


def session_from_model(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_graphs(folded: Folded, lowering: Lowering, x: F32) -> dict[str, F32]:
    """Every network's output when the three run one after the other, as float32."""
    outputs, value = {}, x.astype(lowering.float_dtype)
    for network in folded.values():
        model, info_in, info_out = lower_network(network, lowering, value.shape)
        (value,) = session_from_model(model).run(None, {info_in.name: value})
        assert value.shape == info_out.shape and str(value.dtype) == info_out.dtype
        outputs[network.name] = value.astype(np.float32)
    return outputs


@pytest.fixture(scope="module")
def x() -> F32:
    return np.random.default_rng(8).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)


def check_full_precision(model: SRModel, x: F32, name: str) -> None:
    minimum_db = 90 if LOWERINGS[name].float_dtype == "float32" else 55
    got, value = run_graphs(fold(model, None), LOWERINGS[name], x), torch.from_numpy(x)
    with torch.no_grad():
        for network, reference in reference_networks(model).items():
            value = reference(value)
            assert psnr_db(got[network], value.numpy()) > minimum_db, network


@pytest.mark.parametrize("name", ["asymmetric", "asymmetric-cpu", "symmetric-rtx"])
def test_full_precision_graphs_equal_the_model(tiny_model: SRModel, x: F32, name: str) -> None:
    check_full_precision(tiny_model, x, name)


# The third, silu, is every other test's.
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "silu"])
def test_every_activation_function_that_is_not_refused_is_lowered(
    tiny_folder: Path, tmp_path: Path, x: F32, activation: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    for part in ("unet", "vae"):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"act_fn": activation}))
    check_full_precision(load_model(str(folder)), x, "asymmetric-cpu")


def test_attention_of_the_vae_is_there(tiny_model: SRModel, x: F32) -> None:
    # The equality above would not notice an attention whose output projection is near zero.
    network = fold(tiny_model, None)["decoder"]
    model, *_ = lower_network(network, LOWERINGS["asymmetric"], (1, 4, 32, 32))
    assert [node.op_type for node in model.graph.node].count("Softmax") == 1


def codes_from_input(x: F32, layer: FakeQuantLayer, lowering: Lowering) -> NDArray[Any]:
    """The codes that the lowered graph should hold for a layer's input: padded, shifted, clipped, rounded."""
    container = lowering.activation
    plan = plan_grid(layer.activation, container)
    left, _, top, _ = layer.padding or (0, 0, 0, 0)
    x = rotate(torch.from_numpy(x), layer.rotation, layer.axis).numpy()
    pads = (top, left) if layer.padding else getattr(layer._layer[0], "padding", (0, 0))
    if lowering.borders == "pad" and (plan.shift != 0.0 or layer.let_shift is not None) and any(pads):
        x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[0]), (pads[1], pads[1])))
    x = transform(torch.from_numpy(x), layer.let_scale, layer.let_shift, layer.axis).numpy()
    value = x - np.float32(plan.shift)
    if plan.clip is not None:
        value = np.clip(value, *(np.float32(end) for end in plan.clip))
    limits = np.iinfo(container)
    codes = np.rint(value / np.float32(layer.activation.scale)) + plan.zero_point
    return codes.clip(limits.min, limits.max).astype(container)


def teacher_forced(network: FoldedNetwork, lowering: Lowering, x: F32) -> tuple[dict[str, float], float]:
    """Share of equal codes at every quantizer, and the output's PSNR, given the reference's codes upstream.

    The exported graph with every DequantizeLinear of an activation reading a graph input instead of its Q: a code
    that differs is seen where it arises. Run freely, one rounding that falls the other way spreads to everything
    behind it, in any network of this depth and whatever the libraries.
    """
    reference, expected = fake_quantized(network), {}
    for site, layer in reference.named_modules():
        if isinstance(layer, FakeQuantLayer):
            layer.register_forward_pre_hook(
                lambda module, inputs, site=site: expected.__setitem__(
                    site, codes_from_input(inputs[0].numpy(), module, lowering)
                )
            )
    with torch.no_grad():
        output = reference(torch.from_numpy(x)).numpy()
    model, info_in, _ = lower_network(network, lowering, x.shape)
    feeds: dict[str, Any] = {info_in.name: x}
    sites = []
    quantized = {n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    tensor_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(lowering.activation))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized:
            site = node.name.removesuffix(".dequantize")
            if site.endswith(".to_qkv"):
                expected[site] = expected[site.removesuffix("kv")]
            if (
                lowering.borders == "bias"
                and site.startswith("vae.encoder.")
                and site.endswith(".downsamplers.0.conv")
            ):
                # The reference pads in front of the quantizer, the graph behind it.
                expected[site] = np.ascontiguousarray(expected[site][..., :-1, :-1])
            feeds[f"{site}.given"] = expected[site]
            shape = list(expected[site].shape)
            model.graph.input.append(onnx.helper.make_tensor_value_info(f"{site}.given", tensor_type, shape))
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], tensor_type, shape))
            node.input[0] = f"{site}.given"
            sites.append(site)
    got, *codes = session_from_model(model).run(None, feeds)
    shares = {site: float(np.mean(c == expected[site])) for site, c in zip(sites, codes, strict=True)}
    return shares, psnr_db(got, output)


# The CPU's and the plain int8 lowering write the same integers in another form: few settings are enough.
CASES = [
    *((name, kind, *setting) for name in NETWORKS for kind in ("asymmetric", "symmetric-rtx-f32")
      for setting in (("w8a8", False), ("w6a6", True))),
    ("encoder", "asymmetric-cpu", "w6a6", True),
    ("unet", "asymmetric-cpu", "w8a8", False),
    ("unet", "symmetric-f32", "w6a6", True),
    ("decoder", "symmetric-f32", "w8a8", False),
    # With branches, and with rotations.
    *((name, kind, "w4a4", with_let) for name in NETWORKS for with_let in (True, False)
      for kind in ("asymmetric-cpu", "symmetric-rtx-f32")),
]  # fmt: skip


@pytest.fixture(scope="module")
def folded_at(tiny_model: SRModel, tiny_specialized: Modules, tiny_calibration: Calibration) -> Callable[..., Folded]:
    @cache
    def made(bits: str, with_let: bool) -> Folded:
        sites = {
            site: replace(q, activation_bits=int(bits[3]), weight_bits=int(bits[1]))
            for site, q in tiny_calibration.sites.items()
        }
        if with_let:
            sites = with_random_let(sites, tiny_specialized)
        if bits == "w4a4":
            sites = (
                with_branches(sites, in_phases(tiny_model, tiny_calibration.phases))
                if with_let
                else with_rotations(sites, tiny_model)
            )
        return fold(tiny_model, replace(tiny_calibration, sites=sites, bits=Bits.parse(bits)))

    return made


@pytest.mark.parametrize(("name", "lowering", "bits", "with_let"), CASES)
def test_codes_equal_the_reference_at_every_quantizer(
    folded_at: Callable[..., Folded], x: F32, name: str, lowering: str, bits: str, with_let: bool
) -> None:
    folded, value = folded_at(bits, with_let), torch.from_numpy(x)
    with torch.no_grad():
        for before in NETWORKS[: NETWORKS.index(name)]:
            value = fake_quantized(folded[before])(value)
    network = folded[name]
    shares, output_db = teacher_forced(network, LOWERINGS[lowering], value.numpy())
    # q, k and v share one pair, so there are fewer pairs than layers.
    assert len(network.layers) * 0.6 < len(shares) <= len(network.layers)
    assert min(shares.values()) >= 0.999, min(shares.items(), key=lambda item: item[1])
    assert output_db > 80


@pytest.mark.parametrize("bits", ["w4a4", "w6a6"])
def test_packed_weights_are_the_same_numbers(folded_at: Callable[..., Folded], x: F32, bits: str) -> None:
    """Layers of 4 bits are half as large, others stay; weights are equal to the last bit, and so are pictures."""
    folded = folded_at(bits, True)
    plain, packed = (
        lower_network(folded["decoder"], LOWERINGS[name], (1, 4, 8, 8))[0]
        for name in ("asymmetric", "asymmetric-packed")
    )
    values = [
        {node.output[0]: _dequantized(model, node) for node in _weight_nodes(model)} for model in (plain, packed)
    ]
    assert values[0].keys() == values[1].keys() and len(values[0]) > 10
    assert all(np.array_equal(values[0][name], values[1][name]) for name in values[0])
    kinds = {_initializer(packed, node.input[0]).data_type for node in _weight_nodes(packed)}
    assert (onnx.TensorProto.UINT4 in kinds) is (bits == "w4a4") and packed.opset_import[0].version == 21
    if bits == "w4a4":
        sizes = [
            sum(len(_initializer(m, node.input[0]).raw_data) for node in _weight_nodes(m)) for m in (plain, packed)
        ]
        assert 0.5 <= sizes[1] / sizes[0] < 0.6
    z = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    pictures = [session_from_model(model).run(None, {model.graph.input[0].name: z})[0] for model in (plain, packed)]
    assert psnr_db(*pictures) > 80


def _weight_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    known = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in known]


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _dequantized(model: onnx.ModelProto, node: onnx.NodeProto) -> F32:
    """By ONNX's own reference implementation."""
    inputs = [onnx.numpy_helper.to_array(_initializer(model, name)) for name in node.input]
    codes, scale, zeros = inputs[0].astype(np.float32), inputs[1], inputs[2].astype(np.float32)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)] if scale.ndim else []
    return (codes - zeros.reshape(shape)) * scale.reshape(shape)


def with_random_let(sites: dict[str, SiteQuantizer], networks: Modules) -> dict[str, SiteQuantizer]:
    """Every layer with its own s and d, but q, k and v, which share theirs; ranges wide enough to hold x~."""
    rng = np.random.default_rng(2)
    modules = {site: m for network in networks.values() for site, m in layers_of(network).items()}
    result = dict(sites)
    for group in input_groups(site for site in sites if site in modules):
        channels = modules[group[0]].weight.shape[1]
        s = rng.uniform(0.6, 1.6, channels).astype(np.float32)
        # A shift has no way through attention and GEGLU: half of the layers have none, these two among them.
        shifted = rng.random() < 0.5 and not group[0].endswith(("to_out.0", "ff.net.2"))
        d = rng.normal(0, 0.1 * shifted, channels).astype(np.float32)
        for site in group:
            q = sites[site]
            low, high = min(q.x_min * 1.7, -0.5), max(q.x_max * 1.7, 0.5)
            result[site] = replace(q, x_min=low, x_max=high, let_scale=s, let_shift=d)
    return result


def test_an_operation_without_lowering_is_an_error() -> None:
    class Strange(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, dim=1)

    network = FoldedNetwork("encoder", Strange(), {})
    with pytest.raises(ExportError, match=r"no lowering for aten\.cumsum"):
        lower_network(network, LOWERINGS["asymmetric"], (1, 3, 8, 8))
