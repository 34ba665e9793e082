"""`config.pbtxt`: what Triton wants to know of a model, as text.

Source: https://github.com/triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from intsr.manifest import Manifest, NetworkEntry
from intsr.types import TensorInfo

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}
# Pictures that one call of the model may get: enough to read, compute and write beside one another.
_PICTURES = 8
_KINDS = {
    "image": ("TYPE_UINT8", "-1, -1, 3"),
    "image16": ("TYPE_UINT16", "-1, -1, 3"),
    "encoded": ("TYPE_UINT8", "-1"),
}


def pictures_config(name: str, manifest: Manifest, parameters: Mapping[str, str], on_gpu: bool) -> str:
    """Return the configuration of the model that takes whole pictures."""
    inputs = "".join(
        f'input {{ name: "{kind}" data_type: {dtype} dims: [ {dims} ] optional: true allow_ragged_batch: true }}\n'
        for kind, (dtype, dims) in _KINDS.items()
    )
    outputs = "".join(
        f'output {{ name: "upscaled_{kind}" data_type: {dtype} dims: [ {dims} ] }}\n'
        for kind, (dtype, dims) in _KINDS.items()
    )
    options = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: {quoted(value)} }} }}\n'
        for key, value in parameters.items()
    )
    most = max(_PICTURES, 2 * manifest.networks[0].input.shape[0])
    return (
        f'name: "{name}"\nbackend: "python"\n'
        "# Pictures that are handed over together; of different sizes, as the inputs are ragged.\n"
        f"max_batch_size: {most}\ndynamic_batching {{ }}\n"
        f"# A request has one of the inputs, and gets the output of its kind.\n{inputs}{outputs}"
        f"instance_group {{ kind: {'KIND_GPU' if on_gpu else 'KIND_CPU'} count: 1 }}\n"
        "# As the options of intsr upscale; auto: the library's own choice. python: the one that has intsr.\n"
        f"{options}"
    )


def plan_config(name: str, network: NetworkEntry, plan_name: str, capability: str) -> str:
    """Return the configuration of one network's TensorRT plan. capability: as in `8.9`, or "" for several."""
    named = f'default_model_filename: "{plan_name}"\n'
    if capability:
        named = f'cc_model_filenames {{ key: "{capability}" value: "{plan_name}" }}\n'
    tensors = [_tensor("input", info) for info in network.inputs] + [
        _tensor("output", info) for info in network.outputs
    ]
    return (
        f'name: "{name}"\nplatform: "tensorrt_plan"\n# The batch is the first of the dims.\nmax_batch_size: 0\n'
        f"{named}{''.join(tensors)}instance_group {{ kind: KIND_GPU count: 1 }}\n"
    )


def capability_of(gpu_architecture: str) -> str:
    """Return `8.9` for `sm89`, and "" for several architectures."""
    match = re.fullmatch(r"sm(\d+)(\d)", gpu_architecture)
    return f"{match[1]}.{match[2]}" if match else ""


def quoted(text: str) -> str:
    """Return a string as protobuf's text format has it."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _tensor(kind: str, info: TensorInfo) -> str:
    dims = ", ".join(map(str, info.shape))
    return f'{kind} {{ name: "{info.name}" data_type: {_TYPES[info.dtype]} dims: [ {dims} ] }}\n'
