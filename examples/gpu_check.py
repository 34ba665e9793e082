"""What only a GPU can tell, in ten minutes: `make gpu-check`. Writes gpu-check.json and gpu-check.md.

    python examples/gpu_check.py -o build/gpu-check     # on a machine with an NVIDIA GPU, torch for it, and nvcc
    python examples/gpu_check.py -o DIR --emulate       # the same steps without one, in small sizes

Each step stands alone: one that fails says why, and the next goes on; what was measured is written after every step.
No TensorRT is needed. Times of torch are medians between CUDA events, those of our kernels from a CUDA graph with
caches emptied (`Device.milliseconds`).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
import int8_matmul

from intsr.calib.calibrate import DEFAULT_TRAINING
from intsr.calib.learn.block_data import Recomputed
from intsr.calib.learn.blocks import Block, blocks_of_network, record_input
from intsr.calib.learn.method import parameter_groups
from intsr.calib.learn.quantized_layer import quantized_layers, with_layers
from intsr.calib.learn.stages import initialize_block
from intsr.calib.methods import method_from_name
from intsr.calib.models.families.architecture import SD21
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.phases import in_phases
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.synth import write_synthetic_model
from intsr.files import atomic_path
from intsr.kernels.build import build_source, find_nvcc
from intsr.kernels.launches.launch import Device
from intsr.kernels.selfcheck import open_device
from intsr.runtime.measure.machine import environment
from intsr.types import Bits

HEAVIEST, RUNS, STEPS = 20, 10, 5
# Larger products are not compared with NumPy's, which would take most of the time.
CHECKED_GMACS = 2.0


@dataclass
class Check:
    """What steps share. seconds: in all; a step that would begin later is left out."""

    emulate: bool
    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.emulate else "cuda"

    @property
    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    @cached_property
    def model(self) -> SRModel:
        """SD 2.1's size, random weights; the demonstration model where a GPU is emulated."""
        if self.emulate:
            return load_model("demo")
        with tempfile.TemporaryDirectory() as folder:
            return load_model(str(write_synthetic_model(SD21, Path(folder) / "sd21").folder))

    @cached_property
    def kernels(self) -> Device:
        return open_device(self.emulate)

    @property
    def side_px(self) -> int:
        """Of the enlarged picture."""
        return 64 if self.emulate else 512

    def median_ms(self, run: Callable[[], Any], runs: int = RUNS) -> float:
        """After three unmeasured runs."""
        for _ in range(3):
            run()
        times = []
        for _ in range(1 if self.emulate else runs):
            if self.emulate:
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3)
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times)


def machine(check: Check) -> dict[str, Any]:
    """CPU, GPUs, libraries; and what of PyTorch, Triton, CuPy, cuda-python and nvcc is here."""
    modules = ("triton", "cupy", "cuda", "onnxruntime", "tensorrt")
    cuda = None if check.emulate else torch.cuda.get_device_name()
    found = {name: util.find_spec(name) is not None for name in modules}
    return {**environment(torch.get_num_threads(), (128, 128)), "torch_device": cuda, "modules": found}


def kernels(check: Check) -> dict[str, Any]:
    """Build all of ours, and compare each with its reference."""
    built_s = None
    if not check.emulate:
        start = time.monotonic()
        _run("-m", "intsr.kernels.build")
        built_s = round(time.monotonic() - start, 1)
    # Exit code 1: some do not agree, and the report says which.
    options = ["--emulate"] if check.emulate else []
    report = json.loads(_run("-m", "intsr.kernels.selfcheck", "--json", *options, codes=(0, 1)))
    wrong = [one["name"] for one in report["checks"] if not one["passed"]]
    return {**report, "build_s": built_s, "wrong": wrong}


def baseline(check: Check) -> dict[str, Any]:
    """The three networks in torch: float32 and float16 eager, float16 compiled; milliseconds a picture of 128x128."""
    result: dict[str, Any] = {"size_px": check.side_px}
    for name, network in reference_networks(check.model).items():
        x = torch.rand(_input_shape(check, name), device=check.device) * 2 - 1
        network = network.to(check.device)
        times = {"float32_ms": _forward_ms(check, network, x)}
        if not check.emulate:
            half = network.half().to(memory_format=torch.channels_last)
            x16 = x.half()
            times["float16_ms"] = _forward_ms(check, half, x16)
            start = time.monotonic()
            compiled = torch.compile(half)
            times["float16_compiled_ms"] = _forward_ms(check, compiled, x16)
            times["compile_s"] = round(time.monotonic() - start, 1)
            network.float()
        result[name] = times
    kinds = dict.fromkeys(key for times in result.values() if isinstance(times, dict) for key in times)
    result["total"] = {key: sum(result[name][key] for name in ("encoder", "unet", "decoder")) for key in kinds}
    return result


def products(check: Check) -> dict[str, Any]:
    """Our int8 products beside cuBLAS (int8, float16) and cuDNN (float16) on the model's heaviest layers."""
    device, rng = check.kernels, np.random.default_rng(0)
    if not check.emulate:
        build_source(find_nvcc(), int8_matmul.SOURCE)
    rows = []
    for (kind, shape, channels, kernel, stride), count in _heaviest(check):
        product = int8_matmul.random_product(
            rng, shape, channels, kernel=kernel, stride=stride, padding=(kernel // 2,) * 4
        )
        plans = {tile: int8_matmul.plan(device, product, tile) for tile in int8_matmul.THREADS}
        row: dict[str, Any] = {"kind": kind, "input": shape, "channels_out": channels, "kernel": kernel}
        row |= {"stride": stride, "layers": count, "gmacs": product.residual.size * product.weights[0].size / 1e9}
        for tile, plan in plans.items():
            if row["gmacs"] < CHECKED_GMACS:
                got = device.download(device.run(plan))
                row[f"ours_{tile}_equal"] = bool(np.array_equal(got, int8_matmul.reference(product)))
            row[f"ours_{tile}_ms"] = None if check.emulate else device.milliseconds(plan, RUNS)
        row |= _library_ms(check, product, kernel, stride)
        rows.append(row)
    wrong = [row["input"] for row in rows for tile in int8_matmul.THREADS if row.get(f"ours_{tile}_equal") is False]
    return {"layers": rows, "wrong": wrong}


def calibration(check: Check) -> dict[str, Any]:
    """A training step of the UNet's slowest residual and transformer block on the GPU, and what all would take."""
    method, model = method_from_name("passionsr", False, None), in_phases(check.model)
    layers = quantized_layers(model, Bits(8, 8), ("unet",), **method.layer_settings)
    network = reference_networks(model)["unet"].to(check.device).float()
    x = torch.rand(_input_shape(check, "unet", crop=True), device=check.device)
    blocks = blocks_of_network(network, [site for site in layers if network_of_site(site) == "unet"], x)
    whole_ms, rows = _forward_ms(check, network, x), list[dict[str, Any]]()
    rows += [_block_steps(check, network, b, layers, x, method=method) for b in _one_of_each_kind(network, blocks)]
    ratio = max(row["step_ms"] / row["forward_ms"] for row in rows)
    steps = DEFAULT_TRAINING.block_steps + DEFAULT_TRAINING.joint_steps
    hours = whole_ms * ratio * steps / 3.6e6
    peak = None if check.emulate else torch.cuda.max_memory_allocated() / 1e9
    return {"blocks": rows, "unet_forward_ms": whole_ms, "unet_hours": hours, "steps": steps, "peak_gb": peak}


def onnxruntime_cuda(check: Check) -> dict[str, Any]:
    """The demonstration model in ONNX Runtime, on CUDA where it is installed for it."""
    import onnxruntime

    provider = "CPUExecutionProvider" if check.emulate else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        return {"left_out": f"onnxruntime {onnxruntime.__version__} has no {provider}"}
    with tempfile.TemporaryDirectory() as folder:
        engine = str(Path(folder) / "demo.engine")
        _run(
            "-m", "intsr", "compile", "demo", "--target", "onnxruntime", "--bits", "fp", "--tile", "64", "-o", engine
        )
        device = [] if check.emulate else ["--device", "cuda"]
        options = ["--size", "64", "--min-seconds", "1", "--json", *device]
        report = json.loads(_run("-m", "intsr", "bench", engine, *options))
    return {key: report["engines"][0][key] for key in ("target", "device", "median_ms", "stages_ms")}


STEPS_OF_CHECK = (machine, kernels, products, calibration, baseline, onnxruntime_cuda)


def _run(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """What a Python process writes. Raises RuntimeError with its last line where it ends in another way."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"{arguments} ended with {done.returncode}")
    return done.stdout


def _input_shape(check: Check, network: str, crop: bool = False) -> tuple[int, int, int, int]:
    """crop: of a batch of training crops."""
    side, count = (128 if crop and not check.emulate else check.side_px), 1
    if network == "encoder":
        return count, 3, side, side
    config = check.model.vae.config
    latent = side // 2 ** (len(config.block_out_channels) - 1)
    return count, config.latent_channels, latent, latent


def _forward_ms(check: Check, network: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return check.median_ms(lambda: network(x))


def _heaviest(check: Check) -> list[tuple[tuple[str, tuple[int, ...], int, int, int], int]]:
    """(kind, NHWC of the input, Cout, kernel, stride) with how many layers of the model are so, by their work."""
    counts: Counter[Any] = Counter()
    work: dict[Any, float] = {}

    def see(layer: nn.Conv2d | nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            shape, kernel, stride = (
                (x.shape[0], x.shape[2], x.shape[3], x.shape[1]),
                layer.kernel_size[0],
                layer.stride[0],
            )
            key = ("conv", shape, layer.out_channels, kernel, stride)
        else:
            key = ("linear", (1, x[..., 0].numel(), 1, x.shape[-1]), layer.out_features, 1, 1)
        # What our kernel takes; padding of the few others is not like the rest.
        if key[1][3] % 16 == 0 and key[2] % 8 == 0 and key[3] % 2:
            counts[key] += 1
            work[key] = work.get(key, 0.0) + output.numel() * layer.weight[0].numel()

    for name, network in reference_networks(check.model).items():
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        handles = [layer.register_forward_hook(see) for layer in layers]
        with torch.no_grad():
            network.to(check.device).float()(torch.zeros(_input_shape(check, name), device=check.device))
        for handle in handles:
            handle.remove()
    order = sorted(work, key=lambda key: -work[key])
    return [(key, counts[key]) for key in order[: 2 if check.emulate else HEAVIEST]]


def _library_ms(check: Check, product: Any, kernel: int, stride: int) -> dict[str, float | None]:
    """float16 by cuDNN or cuBLAS; int8 by cuBLAS for what is a matrix product."""
    x = torch.from_numpy(product.codes).to(check.device)
    weight = torch.from_numpy(product.weights).to(check.device)
    times: dict[str, float | None] = {"float16_ms": None, "cublas_int8_ms": None}
    matrix = kernel == 1 and stride == 1
    if check.emulate:
        return times
    if matrix:
        rows, columns = x.reshape(-1, x.shape[-1]), weight.reshape(len(weight), -1)
        a, b = rows.half(), columns.half()
        times["float16_ms"] = check.median_ms(lambda: functional.linear(a, b))
        if len(rows) > 16:
            times["cublas_int8_ms"] = check.median_ms(lambda: torch._int_mm(rows, columns.T))
    else:
        picture = x.half().permute(0, 3, 1, 2)
        filters = weight.half().permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        times["float16_ms"] = check.median_ms(
            lambda: functional.conv2d(picture, filters, stride=stride, padding=kernel // 2)
        )
    return times


def _one_of_each_kind(network: nn.Module, blocks: list[Block]) -> Iterator[Block]:
    """The largest residual block and the largest transformer block."""
    for kind in ("ResnetBlock2D", "Transformer2DModel"):
        own = [block for block in blocks if type(network.get_submodule(block.name)).__name__ == kind]
        if own:
            yield max(own, key=lambda b: sum(p.numel() for p in network.get_submodule(b.name).parameters()))


def _block_steps(
    check: Check, network: nn.Module, block: Block, layers: dict[str, Any], x: torch.Tensor, *, method: Any
) -> dict[str, Any]:
    """Some steps of boundaries and LET, as calibration trains them, after the searched start."""
    own = [layers[site].to(check.device) for site in block.sites]
    source = Recomputed(network, network, block.name, [x], [x])
    value, call = record_input(network, block.name, x)
    module = network.get_submodule(block.name)
    with torch.no_grad():
        target = call.run(module, value)
        forward_ms = check.median_ms(lambda: call.run(module, value))
    start = time.monotonic()
    initialize_block(network, block, own, source.call(), ([value], [], []), start=method.start, seed=0)
    initialize_s = time.monotonic() - start
    trained = with_layers(network, {layer.site: layer for layer in own}).get_submodule(block.name)
    groups = parameter_groups(method.block[-1], own, 1.0)
    optimizer = torch.optim.Adam([{"params": list(parameters), "lr": rate} for parameters, rate in groups])
    batch = value.expand(DEFAULT_TRAINING.batch, *value.shape[1:])

    def step() -> None:
        optimizer.zero_grad()
        (call.run(trained, batch).float() - target).square().mean().backward()
        optimizer.step()

    step_ms = check.median_ms(step, STEPS)
    return {"name": block.name, "forward_ms": forward_ms, "initialize_s": initialize_s, "step_ms": step_ms}


def _markdown(results: dict[str, Any]) -> str:
    """One section a step; tables where there are rows."""
    lines = ["# GPU check", ""]
    for name, result in results.items():
        lines += [f"## {name}", ""]
        rows = next((v for v in result.values() if isinstance(v, list) and v and isinstance(v[0], dict)), [])
        facts = {key: value for key, value in result.items() if value is not rows}
        lines += [f"- {key}: {value}" for key, value in facts.items()] + [""]
        if rows:
            keys = list(rows[0])
            lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
            lines += ["| " + " | ".join(_cell(row.get(key)) for key in keys) + " |" for row in rows] + [""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for both files.")
@click.option("--emulate", is_flag=True, help="On the CPU, in small sizes: no time means anything.")
@click.option("--seconds", type=float, default=570.0, show_default=True, help="No step begins later.")
def main(output: Path, emulate: bool, seconds: float) -> None:
    """Run every step."""
    if not emulate and not torch.cuda.is_available():
        raise SystemExit("gpu_check: torch finds no GPU; --emulate runs the same steps without one")
    output.mkdir(parents=True, exist_ok=True)
    check, results, failed = Check(emulate, seconds), dict[str, Any](), 0
    for step in STEPS_OF_CHECK:
        start = time.monotonic()
        try:
            results[step.__name__] = {"left_out": "no time"} if check.left_s < 0 else step(check)
        # Whatever it was: the others are worth having.
        except Exception as error:
            results[step.__name__] = {"failed": f"{type(error).__name__}: {error}"}
            failed += 1
        result = results[step.__name__]
        result["seconds"] = round(time.monotonic() - start, 1)
        if result.get("wrong"):
            result["failed"] = f"not equal to the reference: {result['wrong']}"
            failed += 1
        outcome = result.get("failed") or result.get("left_out") or "done"
        click.echo(f"{step.__name__}: {outcome}, {result['seconds']} s")
        for name, text in (("gpu-check.json", json.dumps(results, indent=1)), ("gpu-check.md", _markdown(results))):
            with atomic_path(output / name) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
