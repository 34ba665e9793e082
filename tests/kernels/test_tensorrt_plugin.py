"""The plugins in NVIDIA's own Python layer and in front of its own ONNX parser; no GPU is needed.

The Python layer `tensorrt.plugin` comes out of `tensorrt-cu13-bindings`, without that package's library. The library
below it is TensorRT-RTX, which has no plugins that are compiled ahead of time: what TensorRT itself would ask of one
while it builds is asked by a stand-in here.
"""

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intsr.errors import BuildError
from intsr.kernels import build, tensorrt_plugin
from intsr.kernels.launches.group_norm_plugin import NAMESPACE, OPERATORS, SOURCE, VECTORS, PluginNorm, plugin_launch
from intsr.kernels.launches.parameters import KERNELS
from intsr.kernels.tensorrt_plugin import ptx_architecture, ptx_of_kernel

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx-cu13 is not installed")
needs_bindings = pytest.mark.skipif(
    None in (find_spec("tensorrt_rtx"), find_spec("tensorrt_bindings")),
    reason="tensorrt-cu13-bindings or tensorrt-rtx-cu13 is not installed",
)
try:
    NVCC = build.find_nvcc()
except BuildError:
    NVCC = None
SHAPE, NORM = (1, 32, 8, 8), PluginNorm(4, 1e-5, True, -13, 50)
RTX = """
import enum, importlib, json, os, sys, types
import numpy as np
import tensorrt_rtx as trt
from intsr.kernels import tensorrt_plugin
"""
# NVIDIA's `tensorrt.plugin` over TensorRT-RTX, with what that lacks of TensorRT.
LAYER = (
    RTX
    + """
for name in ("ISymExpr", "IPluginV3QuickAOTBuild"):
    setattr(trt, name, type(name, (), {}))
requests = "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT"
trt.QuickPluginCreationRequest = enum.Enum("QuickPluginCreationRequest", requests)
# The layer imports its own library by these names.
bindings = types.ModuleType("tensorrt_bindings")
bindings.__path__ = list(importlib.util.find_spec("tensorrt_bindings").submodule_search_locations)
sys.modules.update({"tensorrt": trt, "tensorrt_bindings": bindings})
plugin = importlib.import_module("tensorrt_bindings.plugin")
sys.modules.update({"tensorrt.plugin": plugin, "tensorrt_rtx.plugin": plugin})
"""
)
# What TensorRT's builder does with a plugin, call by call; symbolic sizes are plain numbers.
BUILDER = """
import tensorrt_bindings.plugin as trtp
operator, architecture = sys.argv[1], int(sys.argv[2])
tensorrt_plugin.ptx_from_source = lambda source, architecture: b"head" + b"".join(
    b"\\n.visible .entry " + name.encode() + b"(" + str(architecture).encode() for name in sys.argv[3].split(",")
)
for _ in range(2):  # a process may build several graphs
    tensorrt_plugin.register_plugins(trt, architecture)

class Number(int):
    is_constant = lambda self: True
    get_constant_value = lambda self: int(self)

class Numbers:
    constant = staticmethod(Number)
    operation = staticmethod(lambda op, a, b: Number(a + b))

trt.IDimensionExpr, trt.DimsExprs = Number, lambda count: [None] * count
trtp._tensor.SymInt32.__call__ = lambda self: self._expr
field, kinds = trt.PluginField, trt.PluginFieldType
integers = {"groups": 4, "activation": 1, "lowest": -13, "highest": 50}
# As the ONNX parser gives them.
fields = {name: field(name, np.array([value], np.int32), kinds.INT32) for name, value in integers.items()}
fields["epsilon"] = field("epsilon", np.array([1e-5], np.float32), kinds.FLOAT32)
creator = trt.get_plugin_registry().get_creator(operator, "1", "intsr")
names = [f.name for f in creator.field_names]
plugin = creator.create_plugin(
    operator, "intsr", trt.PluginFieldCollection([fields[n] for n in names]), trt.TensorRTPhase.BUILD,
    trt.QuickPluginCreationRequest.STRICT_AOT,
)
half, single = trt.float16, trt.float32
(kind,) = plugin.get_output_data_types([half] + [single] * 4, [4, 1, 1, 1, 1])
shapes = [(1, 32, 8, 8)] + [(32,)] * 4
(out,) = plugin.get_output_shapes([[Number(side) for side in shape] for shape in shapes], [], Numbers())

def tensor(shape, kind, layout):
    outer, inner = trt.DynamicPluginTensorDesc(), trt.PluginTensorDesc()
    inner.dims, inner.type, inner.format = shape, kind, layout
    outer.desc = inner
    return outer

formats = trt.TensorFormat
def tensors(first, last):
    middle = [tensor(shape, single, formats.LINEAR) for shape in shapes[1:]]
    return [tensor(shapes[0], half, first), *middle, tensor(shapes[0], kind, last)]

found = plugin.get_supported_format_combinations(tensors(formats.LINEAR, formats.LINEAR), 5)
result = {"names": names, "kind": kind.name, "shape": [int(side) for side in out], "launches": []}
for start in range(0, len(found), 6):
    one = found[start : start + 6]
    assert [f.type.name for f in one[:5]] == ["HALF"] + ["FLOAT"] * 4 and one[5].type == kind
    assert {f.format for f in one[1:5]} == {formats.LINEAR}
    io = tensors(one[0].format, one[5].format)
    plugin.configure_plugin(io[:5], io[5:])
    for tactic in plugin.get_valid_tactics():
        plugin.set_tactic(tactic)
        launch, numbers = type("Launch", (), {})(), type("Setter", (dict,), {})()
        plugin.get_launch_params([], io, 5, launch, numbers, Numbers())
        name, ptx = plugin.get_kernel([t.desc for t in io[:5]], [io[5].desc])
        sizes = [launch.grid_x, launch.grid_y, launch.grid_z, launch.block_x, launch.block_y, launch.block_z]
        result["launches"].append({
            "formats": [one[0].format.name, one[5].format.name], "tactic": tactic, "kernel": name,
            "ptx": ptx.decode(), "sizes": [int(s) for s in sizes], "shared": int(launch.shared_mem),
            "numbers": [int(numbers[i]) for i in range(numbers.nbSymExprs)],
        })
print(json.dumps(result))
"""
# What the parser hands to a creator of the kind that TensorRT-RTX takes.
FIELDS = """
class Creator(trt.IPluginCreatorV3One):
    def __init__(self, name):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = name, "intsr", "1"
        kinds = trt.PluginFieldType
        known = {"groups": kinds.INT64, "epsilon": kinds.FLOAT64, "activation": kinds.INT64, "lowest": kinds.INT64,
                 "highest": kinds.INT64}
        self.field_names = trt.PluginFieldCollection(
            [trt.PluginField(name, np.array([]), kind) for name, kind in known.items()]
        )

    def create_plugin(self, name, fields, phase):
        found = {f.name: f.data.tolist() for f in fields}
        print(json.dumps({"name": name, "fields": found}), flush=True)
        os._exit(0)  # the two libraries' ABIs differ in what comes next

creators = [Creator(name) for name in tensorrt_plugin.OPERATORS]
for creator in creators:
    trt.get_plugin_registry().register_creator(creator, "intsr")
logger = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(logger).create_network(0)
trt.OnnxParser(network, logger).parse_from_file(sys.argv[1])
"""


def child(code, *arguments):
    """In a process of its own: what is loaded stays, and what is registered, too."""
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory):
    """x -> our node -> DequantizeLinear -> y."""
    names = [f"{name}" for name in VECTORS]
    tensors = [numpy_helper.from_array(np.ones(SHAPE[1], np.float32), name) for name in names]
    tensors += [numpy_helper.from_array(np.float16(0.1), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    attributes = {"groups": 4, "epsilon": 1e-5, "activation": 1, "lowest": -13, "highest": 50}
    rules = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}
    operator = next(iter(OPERATORS))
    nodes = [
        helper.make_node(operator, ["x", *names], ["q"], name="node", domain=NAMESPACE, **attributes, **rules),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize"),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, SHAPE) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", infos[:1], infos[1:], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(NAMESPACE, 1)]
    path = tmp_path_factory.mktemp("plugin") / "node.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@needs_bindings
@pytest.mark.parametrize(("operator", "architecture"), zip(OPERATORS, (80, 90), strict=True))
def test_nvidias_layer_gets_the_launches_that_were_checked(operator, architecture):
    output = OPERATORS[operator]
    kernels = ",".join(f"plugin_{a}_{output}{b}" for a in ("linear", "last") for b in ("", "_cluster"))
    got = child(LAYER + BUILDER, operator, str(architecture), kernels)
    assert got["names"] == ["groups", "epsilon", "activation", "lowest", "highest"]
    assert got["kind"] == ("INT8" if output == "codes" else "HALF") and tuple(got["shape"]) == SHAPE
    last = ["HWC8", "HWC16" if output == "codes" else "HWC8"]
    # Clusters from 9.0 up; before, blocks that share a group without one.
    tactics = [1, 2] if architecture == 90 else [1, 3]
    ways = [(formats, tactic) for formats in (["LINEAR", "LINEAR"], last) for tactic in tactics]
    assert sorted(([g["formats"], g["tactic"]] for g in got["launches"]), key=str) == sorted(map(list, ways), key=str)
    for one in got["launches"]:
        layout = "linear" if one["formats"][0] == "LINEAR" else "last"
        launch = plugin_launch(SHAPE, NORM, layout, output, {1: "block", 2: "cluster", 3: "shared"}[one["tactic"]])
        assert (
            one["kernel"] == launch.kernel and one["ptx"] == f"head\n.visible .entry {launch.kernel}({architecture}"
        )
        assert one["sizes"] == [*launch.grid, launch.block, 1, 1] and one["shared"] == launch.shared_bytes
        assert tuple(one["numbers"]) == launch.numbers


@needs_rtx
def test_the_real_parser_finds_the_node_and_hands_over_its_numbers(onnx_path):
    got = child(RTX + FIELDS, str(onnx_path))
    fields = {"groups": [4], "epsilon": [pytest.approx(1e-5)], "activation": [1], "lowest": [-13], "highest": [50]}
    assert got == {"name": "node", "fields": fields}


@needs_rtx
def test_tensorrt_rtx_takes_no_ahead_of_time_plugins():
    """Why --plugins is for `tensorrt` alone. A later version that takes them fails this test: it could have them."""
    assert not child(RTX + 'print(json.dumps(hasattr(trt, "QuickPluginCreationRequest")))')


def test_a_tensorrt_without_such_plugins_is_named():
    with pytest.raises(BuildError, match=r"TensorRT: version 10\.6; expected 10\.9 or newer"):
        tensorrt_plugin.register_plugins(type("Old", (), {"__version__": "10.6"}), 80)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.kernels
@pytest.mark.parametrize("architecture", [80, 90])
def test_ptx_of_one_kernel_assembles_alone_without_spills(architecture, tmp_path):
    ptx = build.ptx_from_source(SOURCE, architecture)
    names = [name for name, (source, _) in KERNELS.items() if source == SOURCE]
    assert len(names) == 8 and ptx.count(b".visible .entry") == 8
    # A GPU has no instruction for these: about a hundred of others each, which one vector had.
    assert not re.findall(rb"\b(?:div|rem)\.[su]64", ptx)
    for name in ("plugin_linear_codes", "plugin_last_codes_cluster"):
        alone = ptx_of_kernel(ptx, name)
        assert alone.count(b".entry") == 1 and len(alone) < len(ptx) / 4
        clustered = b".reqnctapercluster 8, 1, 1" in alone
        assert clustered == (name.endswith("_cluster") and architecture >= 90)
        (tmp_path / "one.ptx").write_bytes(alone)
        target = f"-arch=sm_{architecture}"
        command = [NVCC, "-cubin", target, "-Xptxas=-v", "-o", tmp_path / "one.cubin", tmp_path / "one.ptx"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (report,) = build.parse_reports(result.stdout + result.stderr)
        assert (report.kernel, report.spill_bytes, report.stack_bytes) == (name, 0, 0)
    with pytest.raises(BuildError, match="no kernel plugin_linear in its PTX"):
        ptx_of_kernel(ptx, "plugin_linear")


def test_ptx_is_for_the_gpu_or_for_all_of_them():
    assert [ptx_architecture(c) for c in ((8, 0), (8, 9), (9, 0), (12, 0))] == [80, 80, 90, 90]
    assert ptx_architecture((9, 0), every_ampere=True) == 80
    assert list(OPERATORS.values()) == ["codes", "halves"]
