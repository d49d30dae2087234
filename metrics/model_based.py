"""Text-similarity metrics that need a model: BERTScore, BARTScore and BLEURT, as in the paper's
table 1.

Each has a scale of its own, `raw`, in which papers report it, and a map of that scale into [0, 1],
`to_quality`, so that it can be the quality of an answer; both rise with the answer's quality.
Weights are fetched or loaded at the first use, onto the GPU if there is one.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from backends.model_source import hide_loading_bars, resolve_source
from metrics.base import accepted, read_words
from questions import Reference
from runtime.errors import MetricError

BATCH_SIZE = 16


class TextMetric(ABC):
    """A metric over (answer, reference) pairs, scored in batches; the best accepted reference
    counts.

    Raises MetricError when the model's weights cannot be had.
    """

    is_free_text = True

    def __init__(self, model: str):
        self.model = model

    def read(self, answer: str) -> str | None:
        return read_words(answer)

    @abstractmethod
    def score_pairs(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """One score per pair, in the metric's own scale."""

    @abstractmethod
    def to_quality(self, score: float) -> float:
        """The score mapped into [0, 1], rising."""

    def raw(self, *, predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
        """One score per prediction, in the metric's own scale."""
        texts = [accepted(reference) for reference in references]
        repeated: list[str] = []
        for prediction, wanted in zip(predictions, texts, strict=True):
            repeated += [prediction] * len(wanted)
        scores = iter(self.score_pairs(repeated, [*itertools.chain(*texts)]))
        return [max(itertools.islice(scores, len(wanted))) for wanted in texts]

    def compute(
        self, *, predictions: Sequence[str], references: Sequence[Reference]
    ) -> list[float]:
        qualities = []
        raw = self.raw(predictions=predictions, references=references)
        for prediction, score in zip(predictions, raw, strict=True):
            qualities.append(self.to_quality(score) if prediction.strip() else 0.0)
        return qualities

    def _load(self, read: Callable[[str], Any]) -> Any:
        """What `read` makes of the model's folder or hub id."""
        hide_loading_bars()
        try:
            return read(resolve_source(self.model))
        except (OSError, ValueError) as error:
            raise MetricError(
                f"{type(self).__name__}: the weights of {self.model} cannot be had"
                f" ({str(error).splitlines()[0]}). Run once where the hub is reachable, or name a"
                " local folder instead, for example bleurt:FOLDER"
            ) from error


class BertScore(TextMetric):
    """BERTScore F1 (Zhang et al. 2020; the paper's P(y)) through package bert-score;
    `bertscore:MODEL:LAYERS`.

    Without a model: bert-base-multilingual-cased, layer 9, no rescaling, as in the authors' code.
    Scores below 0 count as 0.
    """

    def __init__(self, model: str = "bert-base-multilingual-cased", num_layers: int = 9):
        super().__init__(model)
        self.num_layers = num_layers

    @cached_property
    def _scorer(self) -> Any:
        from bert_score import BERTScorer  # brings pandas and matplotlib

        return self._load(lambda source: BERTScorer(model_type=source, num_layers=self.num_layers))

    def score_pairs(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        _, _, f1 = self._scorer.score(list(predictions), list(references))
        return f1.tolist()

    def to_quality(self, score: float) -> float:
        return min(1.0, max(0.0, score))


class BartScore(TextMetric):
    """BARTScore (Yuan et al. 2021): mean log-likelihood, in nats per token, of the reference given
    the answer; `bartscore:MODEL`.

    Without a model: facebook/bart-large-cnn, which is what LLM-Blender's evaluation, and so
    MixInstruct, falls back on. The tokens are all of the reference's, `<s>` and `</s>` included, as
    in neulab/BARTScore's `score(answers, references)`. As a quality: exp of it, the geometric mean
    probability of a reference token.
    """

    def __init__(self, model: str = "facebook/bart-large-cnn"):
        super().__init__(model)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return _on_device(self._load(AutoModelForSeq2SeqLM.from_pretrained)), self._load(
            AutoTokenizer.from_pretrained
        )

    @torch.inference_mode()
    def score_pairs(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        model, tokenizer = self._loaded
        limit = model.config.max_position_embeddings
        scores = []
        for answers, wanted in _batches(predictions, references):
            source, target = (
                tokenizer(
                    texts, max_length=limit, truncation=True, padding=True, return_tensors="pt"
                ).to(model.device)
                for texts in (answers, wanted)
            )
            labels = target.input_ids.masked_fill(target.attention_mask == 0, -100)  # (B, T)
            logits = model(
                input_ids=source.input_ids, attention_mask=source.attention_mask, labels=labels
            ).logits  # (B, T, V)
            # (B, T), 0 where padded
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2).float(), labels, reduction="none"
            )
            scores += (-losses.sum(1) / target.attention_mask.sum(1)).tolist()
        return scores

    def to_quality(self, score: float) -> float:
        return math.exp(score)


class Bleurt(TextMetric):
    """BLEURT (Sellam et al. 2020): a BERT with a linear head on its pooled output that was trained
    on human ratings; `bleurt:MODEL`.

    Without a model: Elron/bleurt-base-128, Google's BLEURT-base with 128 tokens as an ordinary
    BertForSequenceClassification. That is the checkpoint behind `evaluate.load("bleurt")`, which
    LLM-Blender uses; BLEURT-20 is another scale (0 to 1, where this one is mostly below 0) and
    needs model classes that transformers does not have. As a quality: the logistic function of it.
    """

    def __init__(self, model: str = "Elron/bleurt-base-128"):
        super().__init__(model)
        length = re.search(
            r"-(128|512)$",
            model,
            # Names of its checkpoints end in their length, though positions go further;
            # BLEURT-20 is a
            # version
        )
        self.max_tokens = int(length[1]) if length else None

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return _on_device(
            self._load(AutoModelForSequenceClassification.from_pretrained)
        ), self._load(AutoTokenizer.from_pretrained)

    @torch.inference_mode()
    def score_pairs(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        model, tokenizer = self._loaded
        if model.config.num_labels != 1:
            raise MetricError(
                f"Bleurt: {self.model} is a classifier of {model.config.num_labels} labels; BLEURT"
                " has one output"
            )
        limit = self.max_tokens or model.config.max_position_embeddings
        scores = []
        for answers, wanted in _batches(predictions, references):  # the reference comes first
            pairs = tokenizer(
                wanted,
                answers,
                max_length=limit,
                truncation="longest_first",
                padding=True,
                return_tensors="pt",
            ).to(model.device)
            scores += model(**pairs).logits[:, 0].tolist()
        return scores

    def to_quality(self, score: float) -> float:
        return 1 / (1 + math.exp(-score))


def _on_device(model: torch.nn.Module) -> torch.nn.Module:
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _batches(
    predictions: Sequence[str], references: Sequence[str]
) -> Iterator[tuple[list[str], list[str]]]:
    for start in range(0, len(predictions), BATCH_SIZE):
        yield (
            list(predictions[start : start + BATCH_SIZE]),
            list(references[start : start + BATCH_SIZE]),
        )
