"""BERT and RoBERTa with their heads: masked words, classes of texts, classes of words, embeddings.

Shapes: B batch, S sequence, E hidden size, V vocabulary, L labels, N whatever is predicted in a
batch. Submodules carry the reference checkpoints' names.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.data import IGNORED
from cambrian.errors import UsageError
from cambrian.layers import Dropout, cross_entropy
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian.runtime import Array
from cambrian_bert.config import BertConfig
from cambrian_bert.encoder import ACTIVATIONS, Encoder

SHARPNESS = 20.0  # cosines lie in [-1, 1], too flat for a softmax (Reimers, Gurevych 2019)


class Bert(Model):
    """What the models share: the encoder, how they start, are trained and deployed.

    A subclass adds its modules in `build`, and says in `head` what its graph gives and in
    `predictions` what it learns.
    """

    base: ClassVar[str] = "bert"  # the encoder's name, with which its parameters' names begin
    pooled: ClassVar[bool] = False
    output: ClassVar[str] = "logits"
    axes: ClassVar[tuple[str, ...]] = ("batch", "sequence")  # of the output, before its width
    tied: ClassVar[Mapping[str, str]] = {}  # second names of parameters, to their first

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.add_module(self.base, Encoder(config, self.pooled))
        self.width = self.build(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @abstractmethod
    def build(self, config: BertConfig) -> int:
        """Add the head's modules; return how wide its output is."""

    @abstractmethod
    def head(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Hidden states (B, S, E) to what the model gives, `axes` by `width`."""

    @abstractmethod
    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, L) of all that is predicted in a batch, and the right answers (N,)."""

    @property
    def encoder(self) -> Encoder:
        encoder = self.get_submodule(self.base)
        assert isinstance(encoder, Encoder)
        return encoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, S) to what `head` gives; padding is 0 in the mask, no segment is 0."""
        return self.head(self.encoder(input_ids, attention_mask, token_type_ids), attention_mask)

    def encode(self, batch: Batch) -> Tensor:
        """The hidden states (B, S, E) of a batch's texts."""
        return self.encoder(
            batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids")
        )

    def updates(self) -> Sequence[Update]:
        return [Update(name="bert", module=self, loss=self.loss)]

    def loss(self, batch: Batch) -> Losses:
        """Mean cross-entropy of the predictions; 0 of a batch that has nothing to predict."""
        return {"loss": cross_entropy(*self.predictions(batch))}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """Loss and accuracy, means over "count" predictions."""
        logits, labels = self.predictions(batch)
        count = torch.tensor(len(labels), device=labels.device)
        right = (logits.argmax(-1) == labels).sum()
        loss = cross_entropy(logits, labels)
        return {"loss": loss, "accuracy": right / count.clamp(min=1), "count": count}

    @property
    def segmented(self) -> bool:
        """Whether the graph takes token_type_ids: not where all texts are of one segment."""
        return self.config.type_vocab_size > 1

    def graphs(self) -> Sequence[Graph]:
        names = ["input_ids", "attention_mask"] + ["token_type_ids"] * self.segmented
        dtype = str(self.encoder.embeddings.word_embeddings.weight.dtype).removeprefix("torch.")
        signature = Signature(
            inputs=tuple(Port(name, "int64", ("batch", "sequence")) for name in names),
            outputs=(Port(self.output, dtype, (*self.axes, self.width)),),
        )
        return [Graph(name="model", module=Deployed(self), signature=signature)]

    def cases(self) -> Iterator[Case]:
        """Batches of 1, 2, 5; 1, 2, 17 and most tokens; with and without padding on the right."""
        most = self.config.max_length
        lengths = sorted({n for n in (1, 2, 17, most) if n <= most})
        for batch, length in itertools.product((1, 2, 5), lengths):
            for padded in (False, True) if batch > 1 and length > 1 else (False,):
                name = f"batch={batch} length={length}" + " padded" * padded
                yield Case(name, (("model", self._inputs(batch, length, padded)),))

    def _inputs(self, batch: int, length: int, padded: bool) -> Mapping[str, Array]:
        """Random tokens, the first row whole and the last, if padded, of one token."""
        generator, shape = np.random.Generator(np.random.Philox(0)), (batch, length)
        widths = length - np.linspace(0, length - 1, batch).astype(np.int64) * padded
        mask = (np.arange(length) < widths[:, None]).astype(np.int64)
        tokens = generator.integers(self.config.vocab_size, size=shape)
        inputs = {
            "input_ids": np.where(mask == 1, tokens, self.config.pad_token_id),
            "attention_mask": mask,
        }
        if self.segmented:
            types = generator.integers(self.config.type_vocab_size, size=shape)
            inputs["token_type_ids"] = types * mask
        return inputs


class Deployed(nn.Module):
    """The graph that is deployed: the encoder with its head."""

    def __init__(self, model: Bert) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.model(**inputs),)


def classifier_dropout(config: BertConfig) -> Dropout:
    """The dropout before a classifier."""
    rate = config.classifier_dropout
    return Dropout(config.hidden_dropout_prob if rate is None else rate)


class PerToken(Bert):
    """A prediction for each token that has a label."""

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The head is computed only where "labels" (B, S) is not -100: of the tokens that a
        masked language model reads it predicts one in seven, and its head is half the work."""
        chosen = batch["labels"] != IGNORED
        return self.head(self.encode(batch)[chosen], None), batch["labels"][chosen]


class BertForTokenClassification(PerToken):
    """A class for each token: the tagger."""

    def build(self, config: BertConfig) -> int:
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))
        return len(config.labels)

    def head(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.classifier(self.dropout(hidden))


class Transform(nn.Module):
    """What stands before the output layer of BERT."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.act(self.dense(x)))


class Predictions(nn.Module):
    """BERT's scores of every token of the vocabulary, (..., E) to (..., V)."""

    def __init__(self, config: BertConfig, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder, self.bias = output_layer(config, embeddings)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class RobertaPredictions(nn.Module):
    """RoBERTa's scores of every token of the vocabulary, (..., E) to (..., V)."""

    def __init__(self, config: BertConfig, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder, self.bias = output_layer(config, embeddings)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.layer_norm(F.gelu(self.dense(x))))


def output_layer(config: BertConfig, embeddings: nn.Embedding) -> tuple[nn.Linear, nn.Parameter]:
    """Hidden states to scores of tokens, and its bias, which the reference knows by two names."""
    layer = nn.Linear(config.hidden_size, config.vocab_size)
    if config.tie_word_embeddings:
        layer.weight = embeddings.weight
    return layer, layer.bias


class BertForMaskedLM(PerToken):
    """The hidden words of a text (Devlin et al. 2019, section 3.1): a token for each token."""

    tied: ClassVar[Mapping[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def build(self, config: BertConfig) -> int:
        predictions = Predictions(config, self.encoder.embeddings.word_embeddings)
        self.cls = nn.ModuleDict({"predictions": predictions})
        return config.vocab_size

    def head(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.cls["predictions"](hidden)

    def derive(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Perplexity: the exponential of the mean loss."""
        return {"perplexity": math.exp(min(means["loss"], 700))}  # exp overflows beyond


class BertForSequenceClassification(Bert):
    """A class for each text, read off its first token."""

    pooled = True
    axes = ("batch",)

    def build(self, config: BertConfig) -> int:
        if len(config.labels) < 2:
            raise UsageError(
                f"A classifier needs two classes or more, but id2label names "
                f"{', '.join(config.labels)} alone; models that give a score and no class are not "
                "supported."
            )
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))
        return len(config.labels)

    def head(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        assert self.encoder.pooler is not None
        return self.classifier(self.dropout(self.encoder.pooler(hidden[:, 0]).tanh()))

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = batch.get("attention_mask")
        return self.head(self.encode(batch), mask), batch["labels"]


class BertForSentenceEmbedding(Bert):
    """A vector of length 1 for each text: the mean of its hidden states.

    It learns from pairs of texts that belong together: each is to find its partner among all
    partners in the batch, by cosine (Henderson et al. 2017; Reimers, Gurevych 2019).
    """

    output = "sentence_embedding"
    axes = ("batch",)

    def build(self, config: BertConfig) -> int:
        return config.hidden_size

    def head(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(hidden[..., 0])
        weights = attention_mask.to(hidden.dtype)[..., None]
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return F.normalize(mean, dim=-1)

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The cosines of every text with every partner, and the other way round, 2 * B by B."""
        texts = self(batch["input_ids"], batch.get("attention_mask"))
        partners = self(batch["pair_input_ids"], batch.get("pair_attention_mask"))
        cosines = SHARPNESS * texts @ partners.T
        own = torch.arange(len(cosines), device=cosines.device)
        return torch.cat((cosines, cosines.T)), torch.cat((own, own))


class RobertaForTokenClassification(BertForTokenClassification):
    """The tagger on RoBERTa."""

    base = "roberta"


class RobertaForMaskedLM(BertForMaskedLM):
    """RoBERTa's masked language model, without BERT's second task."""

    base = "roberta"
    tied: ClassVar[Mapping[str, str]] = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def build(self, config: BertConfig) -> int:
        self.lm_head = RobertaPredictions(config, self.encoder.embeddings.word_embeddings)
        return config.vocab_size

    def head(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.lm_head(hidden)


class RobertaClassifier(nn.Module):
    """RoBERTa's classifier (..., E) to (..., L), with what is BERT's pooler inside."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dropout = classifier_dropout(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.dropout(x)).tanh()
        return self.out_proj(self.dropout(x))


class RobertaForSequenceClassification(BertForSequenceClassification):
    """The classifier of texts on RoBERTa."""

    base = "roberta"
    pooled = False

    def build(self, config: BertConfig) -> int:
        self.classifier = RobertaClassifier(config)
        return len(config.labels)

    def head(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.classifier(hidden[:, 0])


class RobertaForSentenceEmbedding(BertForSentenceEmbedding):
    """The embedder on RoBERTa."""

    base = "roberta"
