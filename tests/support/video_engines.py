"""Video engines: compiled ones, and one of hand-written graphs whose output is the enlarged input, where what it
remembers is right.

encoder    each frame plus a quarter of the last one of the latent before
decoder    takes that away again, by what it has decoded before
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openvino
import video_models
from builds import built_in_this_process
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from intsr.bundle import write_bundle
from intsr.engines.commands.compile import compile_command
from intsr.manifest import ChunkEntry, Manifest, NetworkEntry
from intsr.runtime.backends.packed import IR_MAGIC, pack_member
from intsr.types import VIDEO_NETWORKS, TensorInfo

TILE_PX, FACTOR, PER_LATENT = 16, 2, 4
SIDE_PX = TILE_PX * FACTOR
FRAME, FRAMES = (1, 3, 1, SIDE_PX, SIDE_PX), (1, 3, PER_LATENT, SIDE_PX, SIDE_PX)
LATENT = (1, 3 * PER_LATENT, 1, SIDE_PX, SIDE_PX)
_SWAP = [0, 2, 1, 3, 4]


def _nodes(name: str) -> list[onnx.NodeProto]:
    node = helper.make_node
    # A remembered frame, once for each frame of a latent, a quarter of it.
    spread = [node("Concat", ["before"] * PER_LATENT, ["wide"], axis=1), node("Mul", ["wide", "quarter"], ["part"])]
    if name == "encoder_start":
        return [node("Concat", ["x"] * PER_LATENT, ["latent"], axis=1), node("Identity", ["x"], ["after"])]
    if name == "encoder_next":
        return [
            *spread,
            node("Transpose", ["x"], ["swapped"], perm=_SWAP),
            node("Reshape", ["swapped", "latent_shape"], ["plain"]),
            node("Add", ["plain", "part"], ["latent"]),
            node("Slice", ["x", "last", "end", "time"], ["after"]),
        ]
    if name == "transformer":
        return [node("Conv", ["latent", "kernel"], ["denoised"])]
    if name == "decoder_start":
        return [
            node("Slice", ["denoised", "zero", "three", "channel"], ["frames"]),
            node("Identity", ["frames"], ["after"]),
        ]
    return [
        *spread,
        node("Sub", ["denoised", "part"], ["plain"]),
        node("Reshape", ["plain", "frames_shape"], ["swapped"]),
        node("Transpose", ["swapped"], ["frames"], perm=_SWAP),
        node("Slice", ["frames", "last", "end", "time"], ["after"]),
    ]


def ports(name: str, chunk_frames: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    latents = (*LATENT[:2], 1 + (chunk_frames - 1) // PER_LATENT, *LATENT[3:])
    return {
        "encoder_start": ({"x": FRAME}, {"latent": LATENT, "after": FRAME}),
        "encoder_next": ({"x": FRAMES, "before": FRAME}, {"latent": LATENT, "after": FRAME}),
        "transformer": ({"latent": latents}, {"denoised": latents}),
        "decoder_start": ({"denoised": LATENT}, {"frames": FRAME, "after": FRAME}),
        "decoder_next": ({"denoised": LATENT, "before": FRAME}, {"frames": FRAMES, "after": FRAME}),
    }[name]


def _write_graph(path: Path, name: str, chunk_frames: int) -> NetworkEntry:
    inputs, outputs = ports(name, chunk_frames)
    constants = {
        "quarter": np.float32(0.25),
        "kernel": np.eye(LATENT[1], dtype=np.float32)[:, :, None, None, None],
        "latent_shape": np.array(LATENT),
        "frames_shape": np.array((1, PER_LATENT, 3, SIDE_PX, SIDE_PX)),
        "last": np.array([-1]),
        "end": np.array([PER_LATENT]),
        "time": np.array([2]),
        "zero": np.array([0]),
        "three": np.array([3]),
        "channel": np.array([1]),
    }
    nodes = _nodes(name)
    used = {key for node in nodes for key in node.input}
    values = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items() if key in used]
    infos = [
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in of.items()]
        for of in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, name, *infos, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    tensors = (tuple(TensorInfo(key, shape, "float32") for key, shape in p.items()) for p in (inputs, outputs))
    return NetworkEntry(name, f"{name}.member", *tensors)


def compile_video_engine(folder: Path, engine: Path, *options: object) -> Path:
    """As the command makes it: full precision of target `cpu` where the options say nothing else."""
    bits = () if "--calibration" in options else ("--bits", "fp")
    tile = () if "--tile" in options else ("--tile", video_models.TILE_PX)
    given = (*bits, *tile, "--frames", video_models.FRAMES, *options, "-o", engine)
    with built_in_this_process():
        result = CliRunner().invoke(compile_command, [str(folder), *map(str, given)])
    assert result.exit_code == 0, result.output
    return engine


def write_video_engine(
    folder: Path, target: str = "onnxruntime", chunk_frames: int = 9, overlap_frames: int = 3, color_fix: str = "none"
) -> Path:
    members, entries = {}, []
    for name in VIDEO_NETWORKS:
        onnx_path, member_path = folder / f"{name}.onnx", folder / f"{name}.member"
        entries.append(_write_graph(onnx_path, name, chunk_frames))
        if target == "cpu":
            xml_path = onnx_path.with_suffix(".xml")
            openvino.save_model(openvino.Core().read_model(str(onnx_path)), str(xml_path), compress_to_fp16=False)
            pack_member(IR_MAGIC, xml_path, xml_path.with_suffix(".bin"), member_path)
        else:
            member_path.write_bytes(onnx_path.read_bytes())
        members[member_path.name] = member_path
    library = {"cpu": openvino, "onnxruntime": __import__("onnxruntime")}[target]
    manifest = Manifest(
        model="clip",
        method="none",
        bits="fp",
        parts=(),
        target=target,
        library=library.__name__,
        library_version=str(library.__version__),
        gpu_architecture="",
        precision="auto",
        tile_px=TILE_PX,
        overlap_px=4,
        upscale_factor=FACTOR,
        resize_filter="bicubic",
        color_fix=color_fix,
        networks=tuple(entries),
        sha256={},
        calibration_digest="",
        licence="",
        chunk=ChunkEntry(chunk_frames, PER_LATENT, overlap_frames),
    )
    path = folder / "clip.engine"
    write_bundle(path, manifest, members)
    return path
