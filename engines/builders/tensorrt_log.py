"""Reading a finished TensorRT plan from the builder's detailed log.

With `profiling_verbosity = DETAILED` the builder prints one line a kernel:
`Name: .., LayerType: .., Inputs: [{ Name: .., Dimensions: [..], .. Datatype: .., Format: .. }, ..], Constants: [..],
Outputs: [..], TacticName: .., StreamId: 0, Metadata: [ONNX Layer: a][ONNX Layer: b]`.

What a convolution or GEMM runs on is read from the kernel that multiplies. It is not the only one that names the
ONNX layer: an int8 convolution is followed by a generated kernel (`kgen`) that scales, adds the bias and carries the
same name, and its input may be prepared by another. Int8 weights show up as an Int8 constant. Where the builder gives
up on int8, quantizer and dequantizer fuse, a kernel dequantizes the weights, and the convolution has Half inputs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from intsr.engines.builders.onnx_layers import OnnxLayer

_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), "
    r"Inputs: \[(?P<inputs>.*)\], Constants: \[(?P<constants>.*)\], Outputs: \[(?P<outputs>.*)\], "
    r"TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\], .*?Datatype: (\w+)")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*\[ONNX Layer: |\s*$)")
# Kinds that multiply no matrices, unless their name says so: `kgen` is generated pointwise, reduction and copy code.
_POINTWISE_KINDS = {"kgen", "signal", "wait", "runtime_function", "reformat", "memcpy", "shape", "constant"}
_SYNCHRONIZATION_KINDS = {"signal", "wait"}
_MULTIPLIES = re.compile(r"gemm|gemv|mha", re.IGNORECASE)
_FLOAT32, _INT8 = "Float", "Int8"


class Tensor(NamedTuple):
    """A kernel's operand: a list in JSON, since a large plan has thousands."""

    name: str
    shape: tuple[int, ...]
    # As TensorRT writes it: Float, Half, BFloat16, Int8, Int32, ..
    dtype: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a finished plan."""

    name: str
    # TensorRT's LayerType.
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    # The ONNX nodes that it carries out.
    onnx_layers: tuple[str, ...]
    tactic: str

    @property
    def multiplies(self) -> bool:
        """Convolution, GEMM or attention."""
        return self.kind.lower() not in _POINTWISE_KINDS or bool(_MULTIPLIES.search(self.name))

    @property
    def runs_on_int8(self) -> bool:
        """Int8 activations and int8 weights: an int8 input, and a second int8 operand."""
        int8_inputs = sum(tensor.dtype == _INT8 for tensor in self.inputs)
        int8_constants = sum(tensor.dtype == _INT8 for tensor in self.constants)
        return int8_inputs >= 1 and int8_inputs + int8_constants >= 2


def kernels_from_log(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels of the plan in the order they run, from all messages of one build."""
    lines = (line for message in messages if "LayerType:" in message for line in message.splitlines())
    return tuple(_kernel(match) for line in lines if (match := _KERNEL.match(line)) is not None)


def _kernel(match: re.Match[str]) -> Kernel:
    tensors = {
        part: tuple(
            Tensor(name, tuple(int(side) for side in shape.split(",") if side), dtype)
            for name, shape, dtype in _TENSOR.findall(match[part])
        )
        for part in ("inputs", "constants", "outputs")
    }
    layers = tuple(_ONNX_LAYER.findall(match["metadata"].replace("\x1e", "")))
    return Kernel(name=match["name"], kind=match["kind"], **tensors, onnx_layers=layers, tactic=match["tactic"])


def summarize_plan(messages: Sequence[str], layers: Sequence[OnnxLayer]) -> dict[str, Any]:
    """Return what a finished plan does, JSON-able, as `inspect --layers` shows it: `layers` are the kernels.

    MACs are multiply-accumulates of conv and linear layers. messages: the builder's whole log, verbose messages
    included. layers: of the ONNX graph it was built from.
    """
    kernels = kernels_from_log(messages)
    weighted = [layer for layer in layers if layer.macs and not layer.attention]
    matched = {layer.name: _multiplying_kernels(layer.name, kernels) for layer in weighted}
    int8 = {name for name, found in matched.items() if found and all(k.runs_on_int8 for k in found)}
    op_types = {layer.name: layer.op_type for layer in layers}
    quantizers = {name for name, op_type in op_types.items() if op_type in ("QuantizeLinear", "DequantizeLinear")}
    working = [k for k in kernels if k.kind not in _SYNCHRONIZATION_KINDS]
    macs = sum(layer.macs for layer in weighted)
    int8_macs = sum(layer.macs for layer in weighted if layer.name in int8)
    # Of layers whose weights are stored in int8, whatever they run on.
    int8_weight_macs = sum(layer.macs for layer in weighted if layer.integer_weight)
    return {
        "kernels": len(kernels),
        "macs": macs,
        "int8_macs": int8_macs,
        "int8_weight_macs": int8_weight_macs,
        # Of layers that no kernel names, counted as not int8.
        "unmatched_macs": sum(layer.macs for layer in weighted if not matched[layer.name]),
        # Of attention's own MatMuls, in none of the others.
        "attention_macs": sum(layer.macs for layer in layers if layer.attention),
        # GEMM and attention kernels with a float32 input.
        "fp32_gemms": sum(_is_float32_gemm(k, op_types) for k in kernels),
        # Kernels that do nothing but quantize or dequantize.
        "quantize_kernels": sum(bool(k.onnx_layers) and quantizers.issuperset(k.onnx_layers) for k in working),
        # Kernels that carry out no ONNX layer at all: copies, casts, layout changes.
        "reformat_kernels": sum(not k.onnx_layers for k in working),
        "activation_bytes": _last_number(r"Total Activation Memory: (\d+) bytes", messages),
        "weight_bytes": _last_number(r"Total Weights Memory: (\d+) bytes", messages),
        "float_layers": [_float_layer(layer, matched[layer.name]) for layer in weighted if layer.name not in int8],
        # Most frequent first; fused attention is its own kind.
        "kernels_by_kind": dict(Counter("mha" if "mha" in k.name else k.kind for k in kernels).most_common()),
        # In [0, 1]; 0 where no layer has weights.
        "int8_mac_share": int8_macs / macs if macs else 0.0,
        "int8_weight_share": int8_weight_macs / macs if macs else 0.0,
        "layers": [asdict(kernel) for kernel in kernels],
    }


def _multiplying_kernels(layer: str, kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels that carry out a layer's multiplications.

    One that is called after the layer wins over one that only mentions it in its metadata: there it may have taken in
    just the layer's scale or bias.
    """
    mentioning = [k for k in kernels if k.multiplies and layer in k.onnx_layers]
    return [k for k in mentioning if layer in _layers_in_name(k.name)] or mentioning


def _layers_in_name(name: str) -> set[str]:
    """What a kernel multiplies, by its name: `conv_1_myl0_4`, `q_U3+k_U4+v_U7_myl0_1` (U: the compiler's count)."""
    parts = re.sub(r"_myl\d+_\d+$", "", name).split("+")
    return {*parts, *(re.sub(r"_U\d+$", "", part) for part in parts)}


def _is_float32_gemm(kernel: Kernel, op_types: Mapping[str, str]) -> bool:
    matrix = any(op_types.get(name) in ("MatMul", "Gemm") for name in kernel.onnx_layers)
    return kernel.multiplies and matrix and any(tensor.dtype == _FLOAT32 for tensor in kernel.inputs)


def _float_layer(layer: OnnxLayer, kernels: Sequence[Kernel]) -> dict[str, Any]:
    """A layer that does not run on int8; precision: of its kernel's input, `unknown` where no kernel names it."""
    kernel = next((k for k in kernels if not k.runs_on_int8), None)
    precision = kernel.inputs[0].dtype if kernel and kernel.inputs else "unknown"
    return {"name": layer.name, "precision": precision, "macs": layer.macs, "kernel": kernel.name if kernel else ""}


def _last_number(pattern: str, messages: Iterable[str]) -> int:
    found = [int(match[1]) for message in messages if (match := re.match(pattern, message))]
    return found[-1] if found else 0
