"""What inference is measured beside: transformers and CTranslate2, on the same random weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# How many tokens to generate, to tokens (rows, new); a classifier of texts ignores the number and
# gives logits (rows, classes).
Run = Callable[[int], NDArray[Any]]
Engine = Callable[[NDArray[np.int64]], Run]  # by the tokens (rows, length) that are read

CLASSES = {
    "gpt": "GPT2LMHeadModel",
    "bert": "BertForSequenceClassification",
    "t5": "T5ForConditionalGeneration",
}
# Of the embedding. With random weights a token is likest to itself and repeats for ever, whatever
# else is computed, unless the layers outweigh it; only then do equal tokens say anything.
SHRINK = {"gpt": 0.3, "bert": 1.0, "t5": 0.03}


def save_model(family: str, folder: Path) -> None:
    """Write a model of the family's usual size, in the Hub's layout."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = {
        "gpt": lambda: transformers.GPT2Config(eos_token_id=None),
        "bert": transformers.BertConfig,  # two classes
        "t5": lambda: transformers.T5Config(decoder_start_token_id=0),
    }[family]()
    network = getattr(transformers, CLASSES[family])(config)
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(SHRINK[family])
    network.save_pretrained(folder)


# -- transformers -----------------------------------------------------------------------------


def transformers_engine(family: str, model: Path, dtype: str) -> tuple[Engine, str]:
    """Eager, without generate()'s overhead; and on what it runs."""
    import torch
    import transformers

    network = getattr(transformers, CLASSES[family]).from_pretrained(
        model, dtype=getattr(torch, dtype)
    )
    network.eval()
    work = {"gpt": continue_texts, "bert": classify, "t5": write_answers}[family]

    def engine(ids: NDArray[np.int64]) -> Run:
        given = torch.from_numpy(ids)

        def run(new: int) -> NDArray[Any]:
            with torch.inference_mode():
                return work(network, given, new).numpy()

        return run

    return engine, f"torch {network.device}, eager, {network.config._attn_implementation}"


def continue_texts(network: Any, ids: Any, new: int) -> Any:
    """The likeliest tokens after prompts."""
    import torch

    found = network(ids, use_cache=True, logits_to_keep=1)
    tokens = [found.logits[:, -1].argmax(-1)]
    while len(tokens) < new:
        past = found.past_key_values
        found = network(tokens[-1][:, None], past_key_values=past, use_cache=True)
        tokens.append(found.logits[:, -1].argmax(-1))
    return torch.stack(tokens, dim=1)


def classify(network: Any, ids: Any, new: int) -> Any:
    """Logits of the classes of texts."""
    import torch

    return network(ids, attention_mask=torch.ones_like(ids)).logits.float()


def write_answers(network: Any, ids: Any, new: int) -> Any:
    """The likeliest tokens for sources."""
    import torch

    mask = torch.ones_like(ids)
    source = network.get_encoder()(ids, attention_mask=mask)
    past, tokens = None, [torch.zeros_like(ids[:, 0])]
    while len(tokens) <= new:
        found = network(
            encoder_outputs=source,
            attention_mask=mask,
            decoder_input_ids=tokens[-1][:, None],
            past_key_values=past,
            use_cache=True,
        )
        past = found.past_key_values
        tokens.append(found.logits[:, -1].argmax(-1))
    return torch.stack(tokens[1:], dim=1)


# -- CTranslate2 ------------------------------------------------------------------------------


def convert(family: str, model: Path, out: Path, precision: str) -> None:
    """What ct2-transformers-converter does, but for the tokenizer, which random weights lack."""
    import torch
    import transformers
    from ctranslate2.converters.transformers import _MODEL_LOADERS

    network = getattr(transformers, CLASSES[family]).from_pretrained(model)
    config = network.config
    names = [f"t{number}" for number in range(config.vocab_size)]
    loader = _MODEL_LOADERS[type(config).__name__]
    if family == "bert":
        config.position_embedding_type = "absolute"  # transformers 5 knows no other
        network = network.bert
    with torch.no_grad():
        spec = loader.get_model_spec(network)
        loader.set_vocabulary(spec, names)
        spec.config.unk_token = names[2]
        if family == "bert":
            spec.config.layer_norm_epsilon = config.layer_norm_eps
        else:
            spec.config.bos_token, spec.config.eos_token = names[:2]
        if family == "t5":
            spec.config.decoder_start_token = names[0]
        spec.validate()
        spec.optimize(quantization=None if precision == "float32" else precision)
    out.mkdir(parents=True)
    spec.save(str(out))


def ctranslate2_engine(
    family: str, folder: Path, model: Path, precision: str
) -> tuple[Engine, str]:
    """All cores on one batch; and what it computes in."""
    import ctranslate2

    kind = {
        "gpt": ctranslate2.Generator,
        "bert": ctranslate2.Encoder,
        "t5": ctranslate2.Translator,
    }[family]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    network = kind(
        str(folder), device="cpu", compute_type=precision, inter_threads=1, intra_threads=cores
    )
    provider = f"{network.device}, {network.compute_type}, {cores} threads"
    if family == "bert":
        return classifying(network, model), provider

    def engine(ids: NDArray[np.int64]) -> Run:
        texts = [[f"t{number}" for number in row] for row in ids.tolist()]
        work = translated if family == "t5" else generated
        return lambda new: np.array(
            [[int(name[1:]) for name in row] for row in work(network, texts, new)]
        )

    return engine, provider


def generated(network: Any, texts: list[list[str]], new: int) -> list[list[str]]:
    """The likeliest tokens after prompts, which are read at once, whether or not one ends them."""
    found = network.generate_batch(
        texts,
        max_length=new,
        min_length=new,
        beam_size=1,
        sampling_topk=1,
        include_prompt_in_result=False,
        cache_static_prompt=False,
        end_token=[],
    )
    return [each.sequences[0] for each in found]


def translated(network: Any, texts: list[list[str]], new: int) -> list[list[str]]:
    """The likeliest tokens for sources, whether or not one ends them."""
    found = network.translate_batch(
        texts, beam_size=1, min_decoding_length=new, max_decoding_length=new, end_token=[]
    )
    return [each.hypotheses[0] for each in found]


def classifying(network: Any, model: Path) -> Engine:
    """CTranslate2 has BERT's encoder and pooler alone; the classifier behind them, a product of
    768 by 2, is numpy's."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "numpy") as weights:
        weight, bias = (weights.get_tensor(f"classifier.{n}") for n in ("weight", "bias"))

    def engine(ids: NDArray[np.int64]) -> Run:
        rows = ids.tolist()
        return lambda new: np.asarray(network.forward_batch(rows).pooler_output) @ weight.T + bias

    return engine
