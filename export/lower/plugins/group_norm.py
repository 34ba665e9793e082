"""GroupNorm and what follows it as one node of our own, which TensorRT runs with a kernel of ours.

    n = gamma (x - mean_g) / sqrt(variance_g + eps) + beta     Reshape, InstanceNormalization, Reshape, Mul, Add
    y = n sigmoid(n), or n                                     Sigmoid, Mul
    v = y a - b                                                Mul (LET's 1/s), Sub (LET's d/s and the grid's shift)
    q = clamp(R(clip(v, lo, hi) / D), -128, 127)               Clip, QuantizeLinear

With a != 0 everywhere, (y a - b) / D = (y - b/a) (a/D): the operator's `shift` and `multiplier`. R, clip and clamp
rise with their argument, so that R(clip(v, lo, hi) / D) = clamp(R(v / D), R(lo / D), R(hi / D)): its `lowest` and
`highest`.

`group_norm_silu_quantize` gives q; `group_norm_silu` gives v where no quantizer follows, or y or n where others read
that, too. The constants are the graph's own numbers, products of them taken in float64 and kept in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from intsr.export.lower.plugins.match import INT8_ENDS, Graph, Match, match_group_norm
from intsr.kernels.launches.group_norm_plugin import NAMESPACE, OPERATORS, VECTORS, VERSION

GROUP_NORM = "group-norm"
CODES, HALVES = OPERATORS


def fuse_group_norm_into_plugin(model: onnx.ModelProto, folder: Path) -> int:
    """Rewrite in place; returns how many nodes of ours there are now. folder: of the model's external data.

    A norm stays as it is where x has other than four sides, whole vectors of eight do not fill its channels and
    pixels, its factors are no constants, or others read what lies inside.
    """
    graph = Graph(model, folder)
    norms = [node for node in model.graph.node if node.op_type == "InstanceNormalization"]
    matches = [match for norm in norms if (match := match_group_norm(graph, norm))]
    if matches:
        _rewrite(model, graph, matches)
    return len(matches)


def _node(match: Match) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """The node that stands for the match, and its constants."""
    name, channels = match.norm.name, match.shape[1]
    arrays = (match.gamma, match.beta, match.offset / match.factor, match.factor / match.scale)
    tensors = []
    for kind, array in zip(VECTORS, arrays, strict=True):
        vector = np.broadcast_to(np.asarray(array, np.float64), (channels,)).astype(np.float32)
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(vector), f"{name}.plugin.{kind}"))
    lowest, highest = match.ends or INT8_ENDS
    node = helper.make_node(
        HALVES if match.ends is None else CODES,
        [match.x, *(tensor.name for tensor in tensors)],
        [match.value],
        name=f"{name}.plugin",
        domain=NAMESPACE,
        groups=match.groups,
        epsilon=next(float(a.f) for a in match.norm.attribute if a.name == "epsilon"),
        activation=int(match.activation),
        lowest=lowest,
        highest=highest,
        # What TensorRT's parser asks for: where the operator comes from, and its compiled form.
        plugin_namespace=NAMESPACE,
        plugin_version=VERSION,
        aot=1,
    )
    return node, tensors


def _rewrite(model: onnx.ModelProto, graph: Graph, matches: list[Match]) -> None:
    """Each node goes where the last of those that it stands for was: all that it reads is there already.

    Constants that nobody reads any more go.
    """
    gone = {name for match in matches for node in match.nodes for name in node.output}
    new = {}
    for match in matches:
        new[match.value], tensors = _node(match)
        model.graph.initializer.extend(tensors)
        # Shape inference knows nothing of the operator, and what follows needs it.
        dtype = onnx.TensorProto.INT8 if match.ends else graph.infos[match.x].elem_type
        model.graph.value_info.append(helper.make_tensor_value_info(match.value, dtype, match.shape))
    nodes = [new.get(n.output[0], n) for n in model.graph.node if n.output[0] in new or n.output[0] not in gone]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid(NAMESPACE, int(VERSION)))
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
