"""ONNX for Cambrian: an exporter of standard operators and an engine, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian.hookspecs import hookimpl
from cambrian.specs import ExporterSpec, Ref, RuntimeSpec


@hookimpl
def register_exporters() -> Iterable[ExporterSpec]:
    return [
        ExporterSpec(
            name="onnx",
            summary="ONNX, standard operators only",
            format="onnx",
            exporter=Ref("cambrian_onnx.exporter:OnnxExporter"),
        )
    ]


@hookimpl
def register_runtimes() -> Iterable[RuntimeSpec]:
    return [
        RuntimeSpec(
            name="onnxruntime",
            summary="ONNX Runtime on CPU or CUDA, for exported folders",
            formats=("onnx",),
            runtime=Ref("cambrian_onnx.runtime:OnnxRuntime"),
        )
    ]
