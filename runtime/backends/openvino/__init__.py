"""The `cpu` target.

OpenVINO reports to its makers, over the network, when it is imported and when it converts a model. Nothing here
leaves the machine: the package that reports is taken for one that is not installed. A program that has imported
OpenVINO before IntSR has had its report, and keeps its own way.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
