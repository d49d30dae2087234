"""PairRM, the pairwise ranker of LLM-Blender (Jiang, Ren and Lin, ACL 2023), which compares two
answers to a question side by side.

It reads `[CLS] <|source|> question [SEP] [CLS] <|candidate1|> answer [SEP] [CLS] <|candidate2|>
other answer [SEP]` in one pass. The outputs at the three marks are their representations; one head
scores (source, candidate 1) and (source, candidate 2), and the difference of the scores is the
logit that the first answer is the better one. Weights: llm-blender/PairRM-hf on the Hugging Face
hub (DeBERTa-v3-large, 0.4 billion parameters). It has no access to references.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel

from backends.model_source import hide_loading_bars, resolve_source
from runtime.errors import RankerError

SOURCE, CANDIDATES = "<|source|>", ("<|candidate1|>", "<|candidate2|>")
# Tokens, as PairRM was trained; what the question leaves free goes to the answers
MAX_SOURCE = 1224
MAX_CANDIDATE = 412
ROWS = 16  # comparisons of one pass


class PairRM(DebertaV2PreTrainedModel):
    """Token rows (B, T) with one of each mark -> logit (B,) that candidate 1 is better.

    Names and places are those of the published weights.
    """

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.marks = (config.source_prefix_id, config.cand1_prefix_id, config.cand2_prefix_id)
        self.pretrained_model = DebertaV2Model(config)
        width = config.hidden_size
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * width, width),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(width, config.n_tasks),
        )
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state  # (B, T, D)
        source, first, second = (hidden[input_ids == mark] for mark in self.marks)  # each (B, D)
        # Each (B, tasks)
        scores = [
            self.head_layer(torch.cat([source, candidate], dim=1)) for candidate in (first, second)
        ]
        return (scores[0] - scores[1]).mean(dim=1)


@dataclass(frozen=True)
class Ranking:
    """Scores (K,) of the answers, higher is better, and what comparing took."""

    scores: np.ndarray
    comparisons: int  # forward passes
    tokens: int
    seconds: float


class PairRanker:
    """Compares every pair of answers, in both orders.

    Raises RankerError when `source` (folder or hub id) holds no PairRM.
    """

    def __init__(
        self, source: str, revision: str | None = None, device: torch.device | None = None
    ):
        place = resolve_source(source)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(place, revision=revision or "main")
            hide_loading_bars()
            model, report = PairRM.from_pretrained(
                place, revision=revision or "main", dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, AttributeError) as error:
            raise RankerError(
                f"eval.ranker {source!r} cannot be loaded as a PairRM: {str(error).splitlines()[0]}"
            ) from error
        if report["missing_keys"]:
            raise RankerError(
                f"eval.ranker {source!r} is no PairRM: its weights lack"
                f" {', '.join(sorted(report['missing_keys'])[:3])}"
            )
        if (
            known := tuple(self.tokenizer.convert_tokens_to_ids([SOURCE, *CANDIDATES]))
        ) != model.marks:
            raise RankerError(
                f"eval.ranker {source!r}: its tokenizer numbers {SOURCE}, {', '.join(CANDIDATES)}"
                f" as {known}, its model expects {model.marks}"
            )
        self.model = model.to(device or torch.device("cpu")).eval()
        self.num_params = sum(p.numel() for p in model.parameters())
        self._marks = sorted(
            {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        )

    @torch.inference_mode()
    def rank(self, question: str, answers: Sequence[str]) -> Ranking:
        """Score of each answer: mean over all answers of its logits when named first, minus when
        named second (LLM-Blender's max_logits).

        Equal answers are compared once; with one another they tie.
        """
        start, distinct = time.perf_counter(), list(dict.fromkeys(answers))
        pairs = list(itertools.permutations(range(len(distinct)), 2))
        rows = [self._row(question, distinct[i], distinct[j]) for i, j in pairs]
        better = np.zeros((len(distinct), len(distinct)))
        for first in range(0, len(rows), ROWS):
            batch = self.tokenizer.pad(
                {"input_ids": rows[first : first + ROWS]}, return_tensors="pt"
            ).to(self.model.device)
            for pair, logit in zip(
                pairs[first : first + ROWS],
                self.model(batch["input_ids"], batch["attention_mask"]).tolist(),
                strict=True,
            ):
                better[pair] = logit
        which = [distinct.index(answer) for answer in answers]
        scores = (better - better.T)[np.ix_(which, which)].mean(axis=1)
        return Ranking(scores, len(rows), sum(map(len, rows)), time.perf_counter() - start)

    def _row(self, question: str, first: str, second: str) -> list[int]:
        """Token ids of one comparison."""
        source = self._segment(SOURCE, question, MAX_SOURCE)
        room = (MAX_SOURCE + 2 * MAX_CANDIDATE - len(source)) // 2
        first_mark, second_mark = CANDIDATES
        row = source + self._segment(first_mark, first, room)
        return row + self._segment(second_mark, second, room)

    def _segment(self, mark: str, text: str, max_tokens: int) -> list[int]:
        for special in self._marks:  # a second mark in the row would be read as the first
            text = text.replace(special, " ")
        return self.tokenizer(mark + text, max_length=max_tokens, truncation=True)["input_ids"]
