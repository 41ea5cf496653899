"""The BERT family: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and what shares their
architecture, with four heads each. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cambrian.config import OptimizerConfig, Recipe, TrainConfig
from cambrian.data.config import ClassData, MaskedData, PairData, TagData
from cambrian.hookspecs import hookimpl
from cambrian.specs import ModelSpec, Ref
from cambrian_bert.config import BertConfig, RobertaConfig

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a head makes of the encoder, the same for both families.

    suffix: of the spec's name. kind, reference: of the name of our model's class and of the one
    that checkpoints name. prepare: the function that reads `data`.
    """

    suffix: str
    task: str
    summary: str
    kind: str
    reference: str
    data: Any
    prepare: str
    pipeline: str


HEADS = (
    Head(
        suffix="",
        task="fill-mask",
        summary="masked language model",
        kind="ForMaskedLM",
        reference="ForMaskedLM",
        data=MaskedData(),
        prepare="prepare_masked",
        pipeline="FillMask",
    ),
    Head(
        suffix="-classifier",
        task="text-classification",
        summary="classes of texts",
        kind="ForSequenceClassification",
        reference="ForSequenceClassification",
        data=ClassData(),
        prepare="prepare_classes",
        pipeline="TextClassification",
    ),
    Head(
        suffix="-tagger",
        task="token-classification",
        summary="classes of words",
        kind="ForTokenClassification",
        reference="ForTokenClassification",
        data=TagData(),
        prepare="prepare_tags",
        pipeline="TokenClassification",
    ),
    Head(
        suffix="-embedder",
        task="sentence-similarity",
        summary="sentence embeddings",
        kind="ForSentenceEmbedding",
        reference="Model",
        data=PairData(),
        prepare="prepare_pairs",
        pipeline="SentenceEmbedding",
    ),
)
MASKS = {"bert": "[MASK]", "roberta": "<mask>"}
# From scratch, Muon suits the hidden matrices; for weights that exist it is far too fast.
SCRATCH = OptimizerConfig(
    name="muon",
    adamw_parameters=("*decoder.weight", "*classifier*.weight"),
    lr=3e-3,
    muon_lr=0.02,
    warmup_steps=50,
    schedule="linear",
    min_lr_ratio=0.0,
)
FINE = OptimizerConfig(
    lr=5e-5, betas=(0.9, 0.999), weight_decay=0.01, schedule="linear", min_lr_ratio=0.0
)


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """BERT and RoBERTa with four heads each, by default of their base size.

    The first of a family is also what a config.json means that names no class of model.
    """
    return [
        *(_spec("bert", "Bert", BertConfig, head, TINY) for head in HEADS),
        *(
            _spec(
                "roberta",
                "Roberta",
                RobertaConfig,
                replace(head, data=replace(head.data, tokenizer="bpe")),
                {**TINY, "max_position_embeddings": 42},
            )
            for head in HEADS
        ),
    ]


def _spec(
    family: str, title: str, config: type[BertConfig], head: Head, tiny: Mapping[str, Any]
) -> ModelSpec:
    name = f"{family}{head.suffix}"
    return ModelSpec(
        name=name,
        task=head.task,
        summary=f"bidirectional encoder, {head.summary}",
        config=config,
        model=Ref(f"cambrian_bert.model:{title}{head.kind}"),
        processor=Ref("cambrian.data.tokenizer:Tokenizer"),
        data=Ref(f"cambrian_bert.data:{head.prepare}"),
        pipeline=Ref(f"cambrian_bert.pipeline:{head.pipeline}"),
        weights=Ref(f"cambrian_bert.weights:{name.upper().replace('-', '_')}"),
        recipe=Recipe(optimizer=SCRATCH, data=head.data),
        fine_tuning=Recipe(
            train=TrainConfig(batch_size=16, evaluate_every=100), optimizer=FINE, data=head.data
        ),
        example={
            "model": tiny,
            "train": {"steps": 12, "batch_size": 4, "evaluate_every": 6, "evaluate_batches": 2},
            "optimizer": {"warmup_steps": 2},
        },
        example_inputs=(f"The {MASKS[family]} statement", f"A {MASKS[family]}"),
        model_type=family,
        model_class=f"{title}{head.reference}",
    )
