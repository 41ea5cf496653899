"""OpenVINO for Cambrian: an exporter to its own format, and the engine that runs it. Neither torch
nor OpenVINO here."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian import ExporterSpec, Ref, RuntimeSpec, hookimpl


@hookimpl
def register_exporters() -> Iterable[ExporterSpec]:
    """The format: GRAPH.xml, and the weights beside it."""
    return [
        ExporterSpec(
            name="openvino",
            summary="OpenVINO IR, weights in float32 or float16",
            format="openvino",
            exporter=Ref("cambrian_openvino.exporter:OpenVinoExporter"),
        )
    ]


@hookimpl
def register_runtimes() -> Iterable[RuntimeSpec]:
    """The engine, which reads ONNX as well."""
    return [
        RuntimeSpec(
            name="openvino",
            summary="OpenVINO on the CPU, for exported folders",
            formats=("openvino", "onnx"),
            runtime=Ref("cambrian_openvino.runtime:OpenVinoRuntime"),
        )
    ]
