"""From which similarity free texts agree: chosen on validation questions, by hand-made answers."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from recordings import write_rows

import test_ppo_multi
import train_ppo_multi
from config import EnvConfig, RewardConfig
from evaluation.answer_table import settled_similarity
from evaluation.ground import Ground
from metrics.agreement import choose_similarity, compares_free_text
from questions import SIMILARITY, Question
from training.loop import resumed_run

WORDS = "river stone glass horse cloud".split()  # no two share a stem


def worded(shared: int, own: str) -> str:
    """Five words. Of two such texts the first `shared` are common, so their F1 is shared / 5."""
    return " ".join([*WORDS[:shared], *(f"{own}{place}" for place in range(5 - shared))])


def made(rows: list[tuple[int, bool, bool]], metric: str = "rouge_l"):
    """Questions with two answers each: words in common, and whether each answer is good."""
    questions, answers = [], []
    for number, (shared, _, _) in enumerate(rows):
        questions.append(Question(f"q{number}", "?", metric="recorded", agreement=metric))
        answers.append([worded(shared, "left"), worded(shared, "right")])
    return questions, answers, np.array([[one, other] for _, one, other in rows])


# Hand-made validation answers: pairs, and the similarity that tells the good ones best.
BY_HAND = [
    # Pairs of 0.8 are both good, those of 0.6 are not: of the bounds in (0.6, 0.8] the highest
    ([(4, True, True)] * 4 + [(3, True, False)] * 4, 0.8),
    # What is said in other words is good down to 0.4
    ([(4, True, True), (2, True, True)] * 3 + [(1, False, False)] * 6, 0.4),
    # One bad pair among many good ones at 0.6 does not move the bound to 0.8
    ([(3, True, True)] * 9 + [(3, False, True)] + [(2, False, False)] * 10, 0.6),
    # Agreement foretells nothing good: nothing is chosen
    ([(4, False, False)] * 4 + [(1, True, True)] * 4, SIMILARITY),
    # Nobody agrees, whatever the bound: nothing is chosen
    ([(0, False, False)] * 4 + [(0, True, True)], SIMILARITY),
    # No answer is good: nothing is chosen
    ([(4, False, False)] + [(1, False, False)] * 4, SIMILARITY),
    ([], SIMILARITY),
]


@pytest.mark.parametrize(("rows", "similarity"), BY_HAND)
def test_the_similarity_is_chosen_that_tells_pairs_of_good_answers(rows, similarity) -> None:
    assert choose_similarity(*made(rows)) == pytest.approx(similarity)


def test_a_likelihood_by_hand_decides_between_two_bounds() -> None:
    """Three pairs of 0.8 and two of 0.6 are good, one of 0.6 is bad, two of 0.2 are bad.

    From 0.8 on: shares (3 + 1) / (3 + 2) = .8 and (2 + 1) / (5 + 2) = 3/7, so the outcomes have
    likelihood .8^3 (3/7)^2 (4/7)^3 = .0175. From 0.6 on: (5 + 1) / (6 + 2) = .75 and
    (0 + 1) / (2 + 2) = .25, so .75^5 .25^1 .75^2 = .0334, which is more.
    """
    rows = [(4, True, True)] * 3 + [(3, True, True)] * 2 + [(3, True, False)]
    rows += [(1, False, False)] * 2
    assert choose_similarity(*made(rows)) == pytest.approx(0.6)


def test_answers_in_which_nothing_can_be_read_choose_nothing() -> None:
    questions, answers, good = made([(4, True, True)] * 4 + [(3, True, False)] * 4)
    silent = [(answer, " ") for answer, _ in answers]
    assert choose_similarity(questions, silent, good) == SIMILARITY


def test_only_free_text_is_compared_by_similarity() -> None:
    assert compares_free_text(Question("q", "?", metric="rouge_1"))
    assert not compares_free_text(Question("q", "?", metric="numeric_match"))
    assert not compares_free_text(Question("q", "?", metric="recorded"))  # exact_match


def test_nobody_is_asked_where_there_is_no_free_text_or_the_similarity_is_set() -> None:
    nobody: Any = object()  # fails whoever asks
    plain = [Question("q", "?", metric="numeric_match")]
    free = [Question("q", "?", metric="rouge_l")]
    reward = RewardConfig()
    assert settled_similarity(plain, nobody, EnvConfig(), reward) == SIMILARITY
    fixed = EnvConfig(similarity=0.35)
    assert settled_similarity(free, nobody, fixed, reward) == 0.35


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory, bert_encoder: Path) -> Path:
    """Free texts of two experts. Good ones share three words of five, others one: 0.6 and 0.2."""
    root = tmp_path_factory.mktemp("free")
    rows = []
    for number in range(60):
        split = ("train", "train", "validation", "test")[number % 4]
        is_good = number % 3 > 0
        shared = 3 if is_good else 1
        answers = {"a": worded(shared, f"left{number}x"), "b": worded(shared, f"right{number}x")}
        rows.append(
            {
                "question": f"What is told in tale {number}?",
                "answers": answers,
                "scores": {"a": float(is_good), "b": float(is_good)},
                "meta": {"split": split, "tokens": {"a": 5, "b": 5}, "agreement": "rouge_l"},
            }
        )
    path = write_rows(root / "answers.jsonl", rows)
    experts = []
    for name, params_b in (("a", 1.0), ("b", 2.0)):
        expert = {"name": name, "kind": "recorded", "path": path, "params_b": params_b}
        experts.append(expert)
    data = {}
    for split in ("train", "validation", "test"):
        data[split] = {"path": path, "split": split, "metric": "recorded"}
    settings = {
        "threads": 1,
        "device": "cpu",
        "data": data,
        "pool": {"experts": experts, "store": str(root / "answers.sqlite")},
        "env": {"t_max": 2, "submits": "best", "stop": "action", "continue_past_p0": 0},
        "agent": {"reads": "belief", "max_tokens": 32, "encoder": str(bert_encoder)},
        "ppo": {"batch_size": 16, "repeats": 1},
        "train": {"epochs": 1, "updates_per_epoch": 1, "episodes_per_update": 8, "num_envs": 4},
    }
    (root / "free.yaml").write_text(yaml.safe_dump(settings))
    return root / "free.yaml"


def stored_similarity(run: Path) -> float | None:
    return json.loads((run / "agent" / "config.json").read_text())["settings"]["similarity"]


@pytest.mark.slow
def test_the_chosen_similarity_stays_with_the_agent(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train_ppo_multi.main(["--config", str(config_path), "--name", "chosen"])
    gc.collect()
    assert stored_similarity(run) == pytest.approx(0.6)
    assert Ground([run], []).splits.test[0].similarity == pytest.approx(0.6)
    assert Ground([run], ["--env.similarity", "0.9"]).splits.test[0].similarity == 0.9
    again = resumed_run(run, [])
    assert again.splits.train[0].similarity == pytest.approx(0.6)
    again.folder.close()
    test_ppo_multi.main(["--run", str(run)])
    results = json.loads((run / "report" / "results.json").read_text())
    roles = [row["role"] for row in results["rows"]]
    assert "agreement_cascade" in roles


@pytest.mark.slow
def test_a_similarity_that_is_set_is_kept(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--name", "fixed", "--env.similarity", "0.8"]
    run = train_ppo_multi.main(["--config", str(config_path), *options])
    assert stored_similarity(run) == 0.8


@pytest.mark.slow
def test_where_the_agent_needs_none_the_baselines_choose_it(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation.runner import Evaluation

    monkeypatch.chdir(tmp_path)
    options = ["--env.submits", "last", "--env.stop", "terminator", "--agent.reads", "text"]
    run = train_ppo_multi.main(["--config", str(config_path), "--name", "paper", *options])
    gc.collect()
    assert stored_similarity(run) is None
    assert Evaluation([run], []).splits.test[0].similarity == pytest.approx(0.6)
