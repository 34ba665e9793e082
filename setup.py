"""Packaging: the top-level folders become one namespace, `intsr`."""

from pathlib import Path

from setuptools import find_packages, setup

# The folder of `intsr` itself, and those of its stages.
FOLDERS = {"intsr": "core"} | {
    f"intsr.{stage}": stage for stage in ("runtime", "kernels", "calib", "export", "engines")
}
PACKAGES = [
    package
    for name, folder in FOLDERS.items()
    for package in (name, *(f"{name}.{inner}" for inner in find_packages(folder)))
]

PLOT = ["matplotlib>=3.9"]
METRICS = ["pyiqa==0.1.16"]
COMPILE = [
    "torch==2.13.0",
    "diffusers>=0.42,<0.43",
    "transformers>=5.23,<6",
    "peft>=0.21,<0.22",
    "safetensors>=0.8",
    "onnx>=1.23,<2",
    "onnx-ir>=1.1,<2",
    "onnxscript>=0.7.2",
    "onnxruntime==1.31.1",
    "polygraphy>=0.53.4",
    "scikit-image>=0.26",
]
CUDA = ["cuda-bindings==13.5.0"]
RTX = ["onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0", "tensorrt-cu13-bindings==11.4.0.106"]

setup(
    name="intsr",
    version="0.1.0",
    description="Compile one-step-diffusion super-resolution models into integer engines and run them",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=FOLDERS,
    package_data={
        "intsr": ["py.typed", "models/*/*.json", "models/*/*.safetensors", "models/*/*/*"],
        "intsr.engines.builders": ["rtx_shim/*.c"],
        "intsr.engines.report": ["templates/*"],
        "intsr.kernels": ["*/*.cu", "*/*.cuh", "*/*.h", "*/*.fatbin"],
    },
    install_requires=[
        "numpy>=2",
        "pillow>=12",
        "click>=8.3",
        "rich>=14",
        "openvino==2026.4.1",
        "pyvips>=3.1,<4",
        "pyvips-binary>=8.18",
    ],
    extras_require={
        "compile": COMPILE,
        "rtx": [*RTX, *CUDA],
        "tensorrt": ["tensorrt>=10.13", *CUDA, "polygraphy>=0.53.4"],
        "gpu": CUDA,
        "nvcc": ["nvidia-cuda-nvcc>=13,<14", "nvidia-cuda-cccl>=13,<14"],
        "pycuda": ["pycuda>=2025.1"],
        "onnxruntime-gpu": ["onnxruntime-gpu>=1.23"],
        "plot": PLOT,
        "report": [*PLOT, "jinja2>=3.1"],
        "metrics": METRICS,
        # tensorrt-cu13-bindings: NVIDIA's layer for plugins, which tests/kernels drives.
        "dev": [
            "tensorrt-cu13-bindings==11.4.0.106",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
        ],
    },
    entry_points={"console_scripts": ["intsr = intsr.cli.entry:run"]},
)
