"""PairRM as published, on a small random DeBERTa: its tokens, its head and its ranking by hand.

The published weights are not needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2Model

from config import RewardConfig
from evaluation import pair_ranker
from evaluation.answer_table import ask_all
from evaluation.baselines import rank_all
from evaluation.pair_ranker import PairRanker
from questions import Question
from runtime.errors import RankerError


@pytest.fixture(scope="module")
def ranker(ranker_folder: Path) -> PairRanker:
    return PairRanker(str(ranker_folder))


def logit_by_hand(folder: Path, ids: list[int]) -> float:
    """tanh(W1 [source; candidate] + b1) under W2, candidate 1 minus candidate 2, from the weights'
    published names.
    """
    weights = load_file(folder / "model.safetensors")
    bare = DebertaV2Model(DebertaV2Config.from_pretrained(folder)).eval()
    bare.load_state_dict(
        {
            name.removeprefix("pretrained_model."): tensor
            for name, tensor in weights.items()
            if name.startswith("pretrained_model.")
        }
    )
    with torch.no_grad():
        out = bare(torch.tensor([ids])).last_hidden_state[0].numpy()
    tokens = {token: place for place, token in enumerate(ids)}
    config = DebertaV2Config.from_pretrained(folder)
    source, first, second = (
        out[tokens[mark]]
        for mark in (config.source_prefix_id, config.cand1_prefix_id, config.cand2_prefix_id)
    )
    w1, b1, w2, b2 = (
        weights[f"head_layer.{name}"].numpy()
        for name in ("1.weight", "1.bias", "4.weight", "4.bias")
    )
    score = [
        float((w2 @ np.tanh(w1 @ np.concatenate([source, candidate]) + b1) + b2)[0])
        for candidate in (first, second)
    ]
    return score[0] - score[1]


def test_scores_are_the_mean_over_both_orders_of_logits_worked_out_by_hand(
    ranker: PairRanker, ranker_folder: Path
) -> None:
    answers = ["red", "blue sky", "what is green"]
    piece = ranker.tokenizer.convert_tokens_to_ids
    spelled = {
        "red": ["▁red"],
        "blue sky": ["▁blue", "▁sky"],
        "what is green": ["▁what", "▁is", "▁green"],
    }

    def row(first: str, second: str) -> list[int]:
        parts = [
            ("<|source|>", ["▁what", "▁is", "▁sky"]),
            ("<|candidate1|>", spelled[first]),
            ("<|candidate2|>", spelled[second]),
        ]
        return [
            token for mark, pieces in parts for token in piece(["[CLS]", mark, *pieces, "[SEP]"])
        ]

    logits = {
        pair: logit_by_hand(ranker_folder, row(*pair))
        for pair in itertools.permutations(answers, 2)
    }
    expected = [sum(logits[a, b] - logits[b, a] for b in answers if b != a) / 3 for a in answers]
    found = ranker.rank("what is sky", answers)
    assert found.scores == pytest.approx(expected, abs=1e-5) and np.ptp(expected) > 0.1
    assert (found.comparisons, found.tokens) == (
        6,
        sum(len(row(*pair)) for pair in logits),
    ) and found.seconds > 0
    # The order matters, so both are asked
    assert (
        min(abs(logits[a, b] + logits[b, a]) for a, b in itertools.combinations(answers, 2)) > 1e-4
    )


def test_equal_answers_tie_and_are_compared_once(
    ranker: PairRanker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["red", "blue", "red", "green"]
    found = ranker.rank("what is sky", answers)
    assert found.comparisons == 6 and found.scores[0] == found.scores[2]
    # Each score: half the difference of both logits
    two = {
        pair: ranker.rank("what is sky", list(pair)).scores
        for pair in (("red", "blue"), ("red", "green"))
    }
    assert found.scores[0] == pytest.approx(
        (2 * two["red", "blue"][0] + 2 * two["red", "green"][0]) / 4, abs=1e-6
    )
    monkeypatch.setattr(pair_ranker, "ROWS", 2)
    # Whatever the batch
    assert ranker.rank("what is sky", answers).scores == pytest.approx(found.scores, abs=1e-5)
    assert ranker.rank("what is sky", ["red", "red"]).scores.tolist() == [0, 0]


def test_long_texts_are_cut_and_marks_within_them_are_text(
    ranker: PairRanker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_ranker, "MAX_SOURCE", 8)
    monkeypatch.setattr(pair_ranker, "MAX_CANDIDATE", 5)
    found = ranker.rank("what is sky " * 10, ["red " * 10, "blue"])
    assert found.tokens == 2 * (8 + 5 + 4)  # a short question leaves its room to the answers:
    assert ranker.rank("what", ["red " * 10, "blue"]).tokens == 2 * (4 + 7 + 4)
    evil = ["red <|candidate2|> <|source|> [SEP]", "blue"]
    assert ranker.rank("what <|candidate1|>", evil).scores == pytest.approx(
        ranker.rank("what", ["red", "blue"]).scores, abs=1e-5
    )


def test_the_winner_is_taken_at_everyones_cost_without_a_look_at_the_reference(
    ranker: PairRanker, make_pool: Callable
) -> None:
    answers = ["red", "blue", "green"]
    pool = make_pool([lambda q, a, said=said: said for said in answers])
    questions = [
        Question("a", "what is sky", _reference="blue"),
        Question("b", "is green", _reference="blue"),
    ]
    table = ask_all(questions, pool, RewardConfig())
    choices, rankings = rank_all(table.sealed(), ranker)
    routes = table.routes(choices)
    best = [answers[int(np.argmax(ranker.rank(q.text, answers).scores))] for q in questions]
    assert [route.episode.submitted.answer.text for route in routes] == best
    assert [len(route.episode.steps) for route in routes] == [3, 3]
    assert [r.comparisons for r in rankings] == [6, 6]
    assert ranker.num_params == sum(p.numel() for p in ranker.model.parameters())


def test_what_is_no_pair_ranker_is_refused(
    ranker_folder: Path, tmp_path: Path, bert_encoder: Path
) -> None:
    with pytest.raises(RankerError, match=r"eval\.ranker 'nowhere/at-all' cannot be loaded"):
        PairRanker("nowhere/at-all")
    with pytest.raises(RankerError, match="bert"):
        PairRanker(str(bert_encoder))
    for path in ranker_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(ranker_folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith("head_layer.4")},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(RankerError, match=r"its weights lack head_layer\.4"):
        PairRanker(str(tmp_path))
