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
    "onnxruntime==1.31.1",
    "scikit-image>=0.26",
]
CUDA = ["cuda-bindings==13.5.0"]
# Its Python layer for plugins alone, which tests look into.
TENSORRT_PLUGINS = "tensorrt-cu13-bindings==11.4.0.106"
POLYGRAPHY = ["polygraphy>=0.53.4"]

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
        "intsr.engines.report": ["templates/*"],
        "intsr.runtime.app": ["static/*"],
        "intsr.kernels": ["*/*.cu", "*/*.cuh", "*/*.h", "*/*.fatbin"],
    },
    install_requires=[
        "numpy>=2",
        "pillow>=12",
        "click>=8.3",
        "rich>=14",
        "msgspec>=0.20",
        "filelock>=3.30",
        "openvino==2026.4.1",
        "pyvips>=3.1,<4",
        "pyvips-binary>=8.18",
    ],
    extras_require={
        "compile": COMPILE,
        "rtx": ["tensorrt-rtx-cu13==1.7.1.116", *POLYGRAPHY, *CUDA],
        "tensorrt": ["tensorrt>=10.13", *POLYGRAPHY, *CUDA],
        "gpu": CUDA,
        "nvcc": ["nvidia-cuda-nvcc>=13,<14", "nvidia-cuda-cccl>=13,<14"],
        "pycuda": ["pycuda>=2025.1"],
        "onnxruntime-gpu": ["onnxruntime-gpu[cuda,cudnn]>=1.23"],
        "plot": PLOT,
        "report": [*PLOT, "jinja2>=3.1"],
        "metrics": METRICS,
        "video": ["av>=17,<19"],
        "app": ["gradio==6.31.0"],
        "ray": ["ray[data]==2.60.0"],
        "dev": [
            *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "import-linter>=2.17"),
            TENSORRT_PLUGINS,
        ],
    },
    entry_points={"console_scripts": ["intsr = intsr.cli.entry:run"]},
)
