"""What a call of generation may ask for. No numpy, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEAST = 0.0001  # of what logits are divided by; what is much less leaves no numbers of them
MOST_BEAMS = 1000  # each keeps a past of its own


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is generated; names as in generation_config.json, beside `seed` and `stop`.

    do_sample: draw the next token; otherwise take the likeliest (greedy).
    temperature, top_k, top_p: used where do_sample is set; top_k 0 and top_p 1 keep all tokens.
    num_beams: above 1, search for the likeliest text with so many candidates (beam search).
    length_penalty: beams are compared by log-probability / length**length_penalty; above 0,
        longer ones gain.
    early_stopping: when a search ends: true, as soon as num_beams texts have ended; false, when
        no better one is likely; "never", when no better one is possible.
    repetition_penalty: above 1, makes tokens that occurred already less likely (Keskar 2019).
    eos_token_id: the token or tokens that end a text; None for the model's own.
    decoder_start_token_id: what the decoder beside an encoder begins with; None for the model's
        own.
    seed: same seed, same text.
    stop: strings that end a text; they are not part of it. A beam search does not look for them:
        they cut what it has found.

    Raises ValueError where values make no sense.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not LEAST <= self.temperature <= 1 / LEAST:
            raise ValueError(
                f"temperature must be from {LEAST} to {1 / LEAST:g}, not {self.temperature}; "
                "for the likeliest text set do_sample=false"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if not 1 <= self.num_beams <= MOST_BEAMS:
            raise ValueError(f"num_beams must be from 1 to {MOST_BEAMS}, not {self.num_beams}")
        if self.num_beams > 1 and self.do_sample:
            raise ValueError("a beam search draws nothing; set do_sample=false or num_beams=1")
        if not abs(self.length_penalty) <= 10:
            raise ValueError(
                f"length_penalty must be a number from -10 to 10, not {self.length_penalty}"
            )
        if not LEAST <= self.repetition_penalty <= 1 / LEAST:
            raise ValueError(
                f"repetition_penalty must be from {LEAST} to {1 / LEAST:g}, "
                f"not {self.repetition_penalty}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be at least 0 and below 2**64, not {self.seed}")
        if not all(self.stop):
            raise ValueError("stop must not hold an empty string, which would end every text")

    def ends(self, own: int | None) -> frozenset[int]:
        """The tokens that end a text, where `own` is the model's."""
        ends = own if self.eos_token_id is None else self.eos_token_id
        return frozenset([ends] if isinstance(ends, int) else ends or [])
