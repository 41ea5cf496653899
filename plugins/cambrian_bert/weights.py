"""BERT and RoBERTa checkpoints: the reference's tensors to ours and back.

A checkpoint often serves several heads: what belongs to another one is left aside. The encoder's
names may lack their prefix ("bert.", "roberta."), old files call a LayerNorm's weight and bias
gamma and beta, and some hold buffers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cambrian.errors import BrokenFile
from cambrian_bert import model
from cambrian_bert.config import BertConfig

OLD = {"gamma": "weight", "beta": "bias"}
OLD_NAME = re.compile(r"(?<=LayerNorm\.)(gamma|beta)$")
BARE = re.compile(r"^(embeddings|encoder|pooler)\.")
BUFFERS = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
HEADS = re.compile(r"^(cls|lm_head|classifier|qa_outputs|(bert|roberta)\.pooler)\.")


class BertWeights:
    """The Weights interface for one model of the family.

    bare: the file's names have no prefix, as of the reference's encoder without a head.
    """

    def __init__(self, kind: type[model.Bert], bare: bool = False) -> None:
        self.kind = kind
        self.prefix = f"{kind.base}."
        self.bare = bare

    def load(self, tensors: Mapping[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
        """The module's names, without buffers and other models' heads.

        BrokenFile where one parameter comes under two names, or where tensors differ that the
        config ties. The tensors may be on the meta device.
        """
        with torch.device("meta"):
            expected = self.kind(config).state_dict().keys()
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            own = self._own(name)
            if BUFFERS.search(name) or (HEADS.match(own) and own not in expected):
                continue
            if own in found:
                raise BrokenFile(f"The weights hold '{own}' twice, once by the name '{name}'.")
            found[own] = tensor
        for alias, name in self.kind.tied.items():
            _tie(found, alias, name, config)
        return found

    def save(self, tensors: Mapping[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
        """The reference's names. An untied output layer has its bias twice, which the reference
        does not share either."""
        tied = self.kind.tied
        cut = self.prefix if self.bare else ""
        return {
            name.removeprefix(cut): tensor.clone() if name in tied else tensor
            for name, tensor in tensors.items()
            if name not in tied or not config.tie_word_embeddings
        }

    def _own(self, name: str) -> str:
        name = OLD_NAME.sub(lambda found: OLD[found[0]], name)
        return self.prefix + name if BARE.match(name) else name


def _tie(found: dict[str, Tensor], alias: str, name: str, config: BertConfig) -> None:
    """Give a parameter that goes by two names both, where the file holds only one (the rule of
    transformers' `tie_weights`). Untied, the bias that counts is the output layer's."""
    held = [found[each] for each in (alias, name) if each in found]
    if len(held) == 2 and config.tie_word_embeddings and not torch.equal(*held):
        raise BrokenFile(
            f"The weights hold a '{alias}' that differs from '{name}', but the config ties the "
            'two; set "tie_word_embeddings": false in config.json.'
        )
    for each in (alias, name) if held else ():
        found.setdefault(each, held[0])
    if held and name.endswith("bias"):
        found[name] = found[alias]


BERT = BertWeights(model.BertForMaskedLM)
BERT_CLASSIFIER = BertWeights(model.BertForSequenceClassification)
BERT_TAGGER = BertWeights(model.BertForTokenClassification)
BERT_EMBEDDER = BertWeights(model.BertForSentenceEmbedding, bare=True)
ROBERTA = BertWeights(model.RobertaForMaskedLM)
ROBERTA_CLASSIFIER = BertWeights(model.RobertaForSequenceClassification)
ROBERTA_TAGGER = BertWeights(model.RobertaForTokenClassification)
ROBERTA_EMBEDDER = BertWeights(model.RobertaForSentenceEmbedding, bare=True)
