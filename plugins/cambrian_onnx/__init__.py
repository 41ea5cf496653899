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
        ),
        ExporterSpec(
            name="onnx-ort",
            summary="ONNX for ONNX Runtime alone, by its own operators: faster there",
            format="onnx-ort",
            exporter=Ref("cambrian_onnx.exporter:OrtExporter"),
        ),
        ExporterSpec(
            name="triton",
            summary="ONNX, standard operators only, laid out for Triton Inference Server",
            format="triton",
            exporter=Ref("cambrian_onnx.triton:TritonExporter"),
            repackages=True,
        ),
    ]


@hookimpl
def register_runtimes() -> Iterable[RuntimeSpec]:
    return [
        RuntimeSpec(
            name="onnxruntime",
            summary="ONNX Runtime on CPU or CUDA, for exported folders",
            formats=("onnx-ort", "onnx", "triton"),
            runtime=Ref("cambrian_onnx.runtime:OnnxRuntime"),
        )
    ]
