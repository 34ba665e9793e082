"""What `intsr upscale --ray` costs beyond Ray's start: the same pictures in one process and on local nodes, in turns.

    python examples/ray_overhead.py ENGINE PICTURES [--nodes 2] [--cpus 1] [--cpus-per-actor 1] [--runs 3]

Ray's start is what a run with one picture a worker takes longer than one process does with these pictures:
connecting, asking the nodes, the workers' processes, importing. The ratio is of the rest of a run with all pictures.
Nothing else may run on the machine, which needs nodes * cpus cores; one process gets as many threads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif", ".bmp")


def seconds(engine: Path, pictures: list[Path], *options: str) -> float:
    """Wall time of one call of `intsr upscale`, with everything."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "intsr", "upscale", engine, *pictures, "-o", f"{folder}/", "-q", *options]
        start = time.perf_counter()
        code = subprocess.run([str(part) for part in command], check=False).returncode
        if code not in (0, 1):
            sys.exit(f"intsr upscale ended with {code}")
        return time.perf_counter() - start


def measured(arguments: argparse.Namespace, address: str) -> None:
    pictures = sorted(path for path in arguments.pictures.iterdir() if path.suffix.lower() in SUFFIXES)
    cores = arguments.nodes * arguments.cpus
    few = pictures[: cores // arguments.cpus_per_actor]
    alone = ("--threads", str(cores))
    ray = ("--ray", address, "--cpus-per-actor", str(arguments.cpus_per_actor))
    ratios = []
    for run in range(arguments.runs):
        one_few, ray_few = seconds(arguments.engine, few, *alone), seconds(arguments.engine, few, *ray)
        one_all, ray_all = seconds(arguments.engine, pictures, *alone), seconds(arguments.engine, pictures, *ray)
        start = ray_few - one_few
        ratios.append((ray_all - start) / one_all)
        print(
            f"run {run + 1}: {len(pictures)} pictures, one process {one_all:.1f} s, Ray {ray_all:.1f} s, "
            f"of which its start {start:.1f} s; beyond it {ratios[-1]:.3f} times",
            flush=True,
        )
    print(f"median: {median(ratios):.3f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each node")
    parser.add_argument("--cpus-per-actor", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="intsr-ray-", dir="/tmp") as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        from ray.cluster_utils import Cluster

        node = {"num_cpus": arguments.cpus, "include_dashboard": False, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            for _ in range(arguments.nodes - 1):
                cluster.add_node(**node)
            measured(arguments, cluster.address)
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
