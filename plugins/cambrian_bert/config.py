"""Settings of the BERT family, under the names that its checkpoints use. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["gelu", "gelu_new", "relu"]


def two_labels() -> dict[str, str]:
    """The classes of a config that names none, as the reference has them."""
    return {"0": "LABEL_0", "1": "LABEL_1"}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """config.json of BERT (Devlin et al. 2019); the defaults are BERT base, 110 M parameters.

    hidden_act: "gelu" is the exact one (by erf), "gelu_new" its approximation by tanh.
    classifier_dropout: dropout before a classifier, None for hidden_dropout_prob.
    tie_word_embeddings: the output layer shares the token embedding's matrix.
    id2label: the classes' names by number, "0" to "n - 1"; of use to the classifiers alone.
    label2id: its reverse, which the reference writes as well; always derived, never read.
    problem_type: of a classifier; one class of several is the only one there is.

    Raises ValueError where values cannot make a model.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    classifier_dropout: float | None = None
    tie_word_embeddings: bool = True
    id2label: dict[str, str] = field(default_factory=two_labels, metadata={"of_data": True})
    label2id: dict[str, int | str] | None = field(default=None, metadata={"of_data": True})
    problem_type: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be one of the {self.vocab_size} tokens, not {self.pad_token_id}"
            )
        if self.max_length < 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position, for "
                f"the first {self.position_offset} are never used; raise it"
            )
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"problem_type '{self.problem_type}' is not supported, only "
                "single_label_classification"
            )
        if not self.id2label or set(self.id2label) != {str(i) for i in range(len(self.id2label))}:
            raise ValueError(
                f"id2label must name the classes 0 to n - 1, not {', '.join(self.id2label) or '{}'}"
            )
        object.__setattr__(self, "label2id", {name: i for i, name in enumerate(self.labels)})

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in order."""
        return tuple(self.id2label[str(i)] for i in range(len(self.id2label)))

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def position_offset(self) -> int:
        """The position of a text's first token."""
        return 0

    @property
    def max_length(self) -> int:
        """How many tokens a row may have."""
        return self.max_position_embeddings - self.position_offset


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """config.json of RoBERTa (Liu et al. 2019) and BERTweet; the defaults are RoBERTa base, 125 M.

    Positions count from pad_token_id + 1, and pad_token_id is the position of all padding, so
    that 512 of the 514 embeddings are for tokens.
    """

    vocab_size: int = 50265
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2

    @property
    def position_offset(self) -> int:
        return self.pad_token_id + 1
