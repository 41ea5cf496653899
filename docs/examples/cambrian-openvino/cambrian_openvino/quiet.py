"""OpenVINO without its telemetry, which `import openvino` alone would send."""

import sys

# Whoever imports a module that is None here is told that it is not installed, which OpenVINO
# provides for. Its own way to say no is a command that every user would have to know.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

__all__ = ["openvino"]
