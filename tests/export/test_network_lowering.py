"""Exported graphs, in ONNX Runtime, against the torch reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from intsr.calib.model import SRModel
from intsr.errors import ExportError
from intsr.export.fake_quant import FakeQuantLayer, fake_quantized
from intsr.export.fold import FoldedModel, FoldedNetwork, fold
from intsr.export.lowering import LOWERINGS, Lowering
from intsr.export.network_lowering import NetworkLowering
from intsr.export.specialize import SpecializedModel, specialize
from intsr.kernels.quantizer import quantize
from intsr.types import NETWORKS
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def psnr_db(got: F32, expected: F32) -> float:
    """Peak = the expected tensor's own range."""
    span = float(expected.max() - expected.min())
    return float(20 * np.log10(span) - 10 * np.log10(np.mean((got - expected) ** 2) + 1e-30))


def session_from_model(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run_graphs(folded: FoldedModel, lowering: Lowering, x: F32) -> dict[str, F32]:
    """Every network's output when the three run one after the other, as float32."""
    outputs, value = {}, x.astype(lowering.float_dtype)
    for network in folded.networks:
        model, info_in, info_out = NetworkLowering(network, lowering, value.shape).run()
        (value,) = session_from_model(model).run(None, {info_in.name: value})
        assert value.shape == info_out.shape and str(value.dtype) == info_out.dtype
        outputs[network.name] = value.astype(np.float32)
    return outputs


def run_torch(folded: FoldedModel, x: F32) -> dict[str, F32]:
    outputs, value = {}, torch.from_numpy(x)
    with torch.no_grad():
        for network in folded.networks:
            value = fake_quantized(network)(value)
            outputs[network.name] = value.numpy()
    return outputs


@pytest.fixture(scope="module")
def x() -> F32:
    return np.random.default_rng(8).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("name", ["asymmetric", "symmetric-f32", "symmetric"])
def test_full_precision_graphs_equal_torch(tiny_specialized: SpecializedModel, x: F32, name: str) -> None:
    folded = fold(tiny_specialized, None)
    got, expected = run_graphs(folded, LOWERINGS[name], x), run_torch(folded, x)
    minimum_db = 100 if LOWERINGS[name].float_dtype == "float32" else 55
    for network in NETWORKS:
        assert psnr_db(got[network], expected[network]) > minimum_db, network


def test_attention_of_the_vae_is_there(tiny_specialized: SpecializedModel, x: F32) -> None:
    # The equality above would not notice an attention whose output projection is near zero.
    network = fold(tiny_specialized, None).network("decoder")
    model, *_ = NetworkLowering(network, LOWERINGS["asymmetric"], (1, 4, 32, 32)).run()
    assert [node.op_type for node in model.graph.node].count("Softmax") == 1


Feed = Callable[[str, F32], Any]


def teacher_forced_codes(network: FoldedNetwork, lowering: Lowering, x: F32) -> dict[str, float]:
    """Share of equal codes at every quantizer, each given the reference's own codes upstream.

    The exported graph with every DequantizeLinear of an activation reading a graph input instead of its Q: a code
    that differs is seen where it arises, and not again in everything behind it.
    """
    reference = fake_quantized(network)
    expected: dict[str, NDArray[np.uint8]] = {}
    for site, layer in reference.named_modules():
        if isinstance(layer, FakeQuantLayer):
            layer.register_forward_pre_hook(
                lambda module, inputs, site=site: expected.__setitem__(
                    site, quantize(inputs[0].numpy(), module.activation)
                )
            )
    with torch.no_grad():
        reference(torch.from_numpy(x))
    model, info_in, _ = NetworkLowering(network, lowering, x.shape).run()
    feeds: dict[str, Any] = {info_in.name: x}
    sites = []
    quantized = {n.output[0]: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized:
            site = node.name.removesuffix(".dequantize")
            feeds[f"{site}.given"] = expected[site]
            shape = list(expected[site].shape)
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(f"{site}.given", onnx.TensorProto.UINT8, shape)
            )
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.UINT8, shape)
            )
            node.input[0] = f"{site}.given"
            sites.append(site)
    outputs = session_from_model(model).run(None, feeds)[1:]
    return {site: float(np.mean(codes == expected[site])) for site, codes in zip(sites, outputs, strict=True)}


@pytest.mark.parametrize("name", NETWORKS)
def test_codes_equal_the_reference_at_every_quantizer(tiny_folded: FoldedModel, x: F32, name: str) -> None:
    with torch.no_grad():
        value = torch.from_numpy(x)
        for network in tiny_folded.networks[: NETWORKS.index(name)]:
            value = fake_quantized(network)(value)
    network = tiny_folded.network(name)
    shares = teacher_forced_codes(network, LOWERINGS["asymmetric"], value.numpy())
    # q, k and v share one pair, so there are fewer pairs than layers.
    assert len(network.layers) * 0.6 < len(shares) <= len(network.layers)
    assert min(shares.values()) >= 0.999, min(shares.items(), key=lambda item: item[1])


def border_and_inside(image: F32) -> tuple[F32, F32]:
    mask = np.zeros(image.shape, bool)
    mask[..., 8:-8, 8:-8] = True
    return image[~mask], image[mask]


@pytest.mark.parametrize("network", NETWORKS)
def test_symmetric_lowering_equals_asymmetric(tiny_folded: FoldedModel, x: F32, network: str) -> None:
    """The same network on the same input, border included: float32 around the integers, so only ties may differ."""
    folded, shape = tiny_folded.network(network), (1, 4, 32, 32) if network != "encoder" else x.shape
    value = np.random.default_rng(4).uniform(-1, 1, shape).astype(np.float32)
    outputs = []
    for name in ("asymmetric", "symmetric-f32"):
        model, info_in, _ = NetworkLowering(folded, LOWERINGS[name], shape).run()
        outputs.append(session_from_model(model).run(None, {info_in.name: value})[0])
    for part_a, part_b in zip(border_and_inside(outputs[0]), border_and_inside(outputs[1]), strict=True):
        assert psnr_db(part_b, part_a) >= 55


def test_an_unpadded_shift_would_be_seen(tiny_folded: FoldedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The border test can fail: leave the padding to the convolution, and it does."""
    from intsr.export import aten

    network = tiny_folded.network("encoder")
    value = np.random.default_rng(4).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    model, info_in, _ = NetworkLowering(network, LOWERINGS["asymmetric"], value.shape).run()
    expected = session_from_model(model).run(None, {info_in.name: value})[0]
    lowering = NetworkLowering(network, LOWERINGS["symmetric-f32"], value.shape)
    write = lowering.activations.write
    monkeypatch.setattr(
        type(lowering.activations),
        "write",
        lambda _self, v, params, _pads, site: (*write_plain(write, v, params, site), False),
    )
    monkeypatch.setattr(aten, "shifted_bias", aten.shifted_bias)
    model, info_in, _ = lowering.run()
    wrong = session_from_model(model).run(None, {info_in.name: value})[0]
    assert psnr_db(border_and_inside(wrong)[0], border_and_inside(expected)[0]) < 50


def write_plain(write: Callable[..., tuple[str, float, bool]], value: str, params: Any, site: str) -> tuple[str, float]:
    dequantized, shift, _ = write(value, params, (0, 0, 0, 0), site)
    return dequantized, shift


def test_an_operation_without_lowering_is_an_error() -> None:
    class Strange(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, dim=1)

    network = FoldedNetwork("encoder", Strange(), {})
    with pytest.raises(ExportError, match=r"no lowering for aten\.cumsum"):
        NetworkLowering(network, LOWERINGS["asymmetric"], (1, 3, 8, 8)).run()


def test_demo_model_end_to_end(demo_model: SRModel, demo_picture: Path) -> None:
    """A real photograph through the bundled model: the exported integer graphs against the torch reference."""
    from intsr.calib.calibration import Calibration
    from intsr.calib.maxmin import observe_maxmin
    from intsr.calib.pictures import calibration_batches
    from intsr.types import Bits

    bits, parts = Bits.parse("w8a8"), ("unet", "vae")
    batches = list(calibration_batches([demo_picture], demo_model.spec, tile_px=64))
    sites = observe_maxmin(demo_model, batches, bits, parts)
    calibration = Calibration("maxmin", bits, parts, "demo", demo_model.digest, 1, 64, 0.0, 0, sites)
    folded = fold(specialize(demo_model), calibration)
    picture = batches[0][:1].numpy()
    expected = run_torch(folded, picture)["decoder"].clip(-1, 1)
    for name in ("asymmetric", "symmetric-f32"):
        got = run_graphs(folded, LOWERINGS[name], picture)["decoder"].clip(-1, 1)
        assert 20 * np.log10(2) - 10 * np.log10(np.mean((got - expected) ** 2)) >= 55, name
