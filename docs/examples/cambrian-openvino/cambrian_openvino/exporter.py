"""The OpenVINO exporter: torch.export, and OpenVINO's own reader of what that gives.

The files say what the signature says, and nothing of where they were made: the same model gives
the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import torch

from cambrian import CambrianError, Exporter, Graph, GraphFile, Model
from cambrian.exporting.tracing import traceable
from cambrian_openvino.quiet import openvino

PRECISIONS = ("float32", "float16")


class OpenVinoExporter(Exporter):
    """Writes GRAPH.xml and GRAPH.bin for each graph.

    In float16 it is the weights that are rounded; the engine computes with them in float32.
    """

    distributions: ClassVar[tuple[str, ...]] = ("openvino",)

    def refuses(self, model: Model, precision: str) -> str | None:
        if precision not in PRECISIONS:
            return f"precision '{precision}' is not one of {', '.join(PRECISIONS)}"
        return None if model.graphs() else "the model declares no graphs"

    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        files: dict[str, GraphFile] = {}
        for graph in model.graphs():
            file = f"{graph.name}.xml"
            # It rounds unless it is told not to.
            openvino.save_model(
                converted(graph), folder / file, compress_to_fp16=precision == "float16"
            )
            files[graph.name] = GraphFile(file=file, signature=graph.signature)
        return files

    def stamp(
        self, folder: Path, graphs: Mapping[str, GraphFile], facts: Mapping[str, str]
    ) -> None:
        """Add the facts to what the file says of itself: `model.get_rt_info(["cambrian.version"])`
        gives one."""
        for graph in graphs.values():
            tree = ElementTree.parse(folder / graph.file)
            about = tree.getroot().find("rt_info")
            assert about is not None
            for name, value in facts.items():
                ElementTree.SubElement(about, name, value=value)
            tree.write(folder / graph.file, "utf-8", xml_declaration=True)


def converted(graph: Graph) -> openvino.Model:
    """The graph as OpenVINO has it; CambrianError, with its or torch's reason, where it cannot."""
    module, inputs, dynamic = traceable(graph)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # they concern the insides of the two
            program = torch.export.export(module, inputs, dynamic_shapes=dynamic)
            model = openvino.convert_model(program)
    except Exception as error:  # their errors share no class but this
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CambrianError(
            f"Graph '{graph.name}' cannot be converted to OpenVINO: {reason}."
        ) from error
    signature = graph.signature
    for value, port in zip(
        [*model.inputs, *model.outputs], [*signature.inputs, *signature.outputs], strict=True
    ):
        value.get_tensor().set_names({port.name})
    # Its own names count on from one graph to the next.
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    model.set_friendly_name(graph.name)
    return model
