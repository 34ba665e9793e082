"""Tiny engines out of hand-written ONNX graphs: no torch, no model, milliseconds to open."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

from intsr.bundle import write_bundle
from intsr.manifest import SCHEMA_VERSION, Manifest, NetworkEntry, TileEntry
from intsr.types import TensorInfo

TILE_PX, FACTOR, LATENT_CHANNELS = 16, 2, 12
SIDE_PX, LATENT_PX = TILE_PX * FACTOR, TILE_PX * FACTOR // 2
PICTURE, LATENT = (1, 3, SIDE_PX, SIDE_PX), (1, LATENT_CHANNELS, LATENT_PX, LATENT_PX)
SHAPES = {
    "encoder": (("x", PICTURE), ("latent", LATENT)),
    "unet": (("latent", LATENT), ("denoised", LATENT)),
    "decoder": (("denoised", LATENT), ("image", PICTURE)),
}
# Of an engine that takes the low resolution itself.
DIRECT_SHAPES = {"unet": (("x", (1, 3, TILE_PX, TILE_PX)), ("latent", LATENT)), "decoder": SHAPES["decoder"]}
LIBRARIES = {"cpu": "openvino", "onnxruntime": "onnxruntime"}


def write_graph(
    path: Path,
    name: str,
    decoder_gain: float = 1.0,
    decoder_bias: float = 0.0,
    batch: int = 1,
    *,
    tile_px: int = TILE_PX,
) -> None:
    """encoder: space to depth. unet: identity. decoder: depth to space, times the gain, plus the bias."""
    (input_name, input_shape), (output_name, output_shape) = _ports(name, batch, tile_px)
    constants = {
        "encoder": {},
        "unet": {"kernel": np.eye(LATENT_CHANNELS)[:, :, None, None]},
        "decoder": {"gain": decoder_gain, "bias": decoder_bias},
    }[name]
    if name == "encoder":
        nodes = [helper.make_node("SpaceToDepth", [input_name], [output_name], blocksize=2)]
    elif name == "unet":
        nodes = [helper.make_node("Conv", [input_name, "kernel"], [output_name])]
    else:
        nodes = [
            helper.make_node("DepthToSpace", [input_name], ["spread"], blocksize=2),
            helper.make_node("Mul", ["spread", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "bias"], [output_name]),
        ]
    source = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, input_shape)
    target = helper.make_tensor_value_info(output_name, TensorProto.FLOAT, output_shape)
    initializers = [numpy_helper.from_array(np.array(value, np.float32), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, [source], [target], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    save(model, path)


def write_member(target: str, onnx_path: Path, member_path: Path) -> None:
    import openvino

    from intsr.runtime.backends.packed import IR_MAGIC, pack_member

    if target == "onnxruntime":
        member_path.write_bytes(onnx_path.read_bytes())
        return
    xml_path = onnx_path.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(str(onnx_path)), str(xml_path), compress_to_fp16=False)
    pack_member(IR_MAGIC, xml_path, xml_path.with_suffix(".bin"), member_path)


def _ports(name: str, batch: int, tile_px: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (key, (batch, shape[1], *(side * tile_px // TILE_PX for side in shape[2:]))) for key, shape in SHAPES[name]
    )


def _entries(batch: int, tile_px: int) -> tuple[NetworkEntry, ...]:
    ports = {
        name: [(TensorInfo(key, shape, "float32"),) for key, shape in _ports(name, batch, tile_px)] for name in SHAPES
    }
    return tuple(NetworkEntry(name, _member(name, tile_px), *tensors) for name, tensors in ports.items())


def _member(name: str, tile_px: int) -> str:
    return f"{name}.member" if tile_px == TILE_PX else f"{name}.{tile_px}.member"


def manifest_for(target: str, /, batch: int = 1, **changes: object) -> Manifest:
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model="identity",
        method="none",
        bits="fp",
        parts=(),
        target=target,
        library=LIBRARIES[target],
        library_version=str(import_module(LIBRARIES[target]).__version__),
        gpu_architecture="",
        precision="auto",
        tile_px=TILE_PX,
        overlap_px=4,
        upscale_factor=FACTOR,
        resize_filter="bicubic",
        color_fix="none",
        networks=_entries(batch, TILE_PX),
        sha256={},
        calibration_digest="",
        licence="",
    )
    return dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]


def write_identity_engine(
    folder: Path,
    target: str = "onnxruntime",
    /,
    decoder_gain: float = 1.0,
    decoder_bias: float = 0.0,
    batch: int = 1,
    smaller_px: int = 0,
    **changes: object,
) -> Path:
    """Return the path of a new bundle. smaller_px: of tiles that it holds beside its default, 0 for none. changes: of
    the manifest.
    """
    members = {}
    for tile_px in (TILE_PX, smaller_px)[: 1 + bool(smaller_px)]:
        for name in SHAPES:
            member_path = folder / _member(name, tile_px)
            onnx_path = member_path.with_suffix(".onnx")
            write_graph(onnx_path, name, decoder_gain, decoder_bias, batch, tile_px=tile_px)
            write_member(target, onnx_path, member_path)
            members[member_path.name] = member_path
    if smaller_px:
        changes["tiles"] = (TileEntry(smaller_px, 2, _entries(batch, smaller_px)),)
    path = folder / "identity.engine"
    write_bundle(path, manifest_for(target, batch, **changes), members)
    return path
