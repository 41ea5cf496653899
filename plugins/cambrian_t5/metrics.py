"""How near generated texts come to expected ones, by the packages that papers are scored with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cambrian.scores import Scores


def compare(found: Sequence[str], expected: Sequence[str]) -> Scores:
    """Corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacrebleu, from 0 to 100;
    the mean of ROUGE-L's F1 (Lin 2004) by rouge_score, and exact matches, from 0 to 1. Words are
    what blanks and punctuation part, so BLEU and ROUGE-L say little of Chinese or Japanese.

    Where the extra "metrics" is not installed, exact matches alone.
    """
    pairs = list(zip(found, expected, strict=True))
    exact = {"exact_match": sum(got == want for got, want in pairs) / len(pairs)}
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return Scores(exact)
    scorer: Any = RougeScorer(["rougeL"], tokenizer=Words())
    overlaps = [scorer.score(want, got)["rougeL"].fmeasure for got, want in pairs]
    return Scores(
        {
            "bleu": sacrebleu.corpus_bleu(list(found), [list(expected)]).score,
            "chrf": sacrebleu.corpus_chrf(list(found), [list(expected)]).score,
            "rougeL": sum(overlaps) / len(pairs),
            **exact,
        }
    )


class Words:
    """rouge_score's words, lower-cased; its own tokenizer knows no letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())
