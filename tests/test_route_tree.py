"""The exact optimum and the full-information router against brute force and hand arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from agent import build_agent
from backends.answer_store import AnswerStore
from config import AgentConfig, RewardConfig
from der_env import Episode, OracleJudge, Step
from evaluation import full_information
from evaluation.full_information import FullInformationRouter, fit_full_information, fit_key
from evaluation.route_tree import best_fixed_route, grow, max_calls, optimal_routes, optimal_values
from experts import ExpertPool, Request, build_pool
from metrics.registry import score_answers
from questions import Question, load_splits
from reward import charge
from rollout import NeverSatisfied, play, score_routes
from runtime.command_line import load_config
from runtime.errors import BudgetError

REWARD = RewardConfig(alpha=0.1)


def brute_force(
    questions: Sequence[Question], pool: ExpertPool, t_max: int, reward: RewardConfig
) -> np.ndarray:
    """Best return of each question over all sequences of experts of length 1 to t_max, no two
    sequences sharing anything.
    """
    best = np.full(len(questions), -np.inf)
    for length in range(1, t_max + 1):
        for route in itertools.product(range(len(pool)), repeat=length):
            texts, spent = [None] * len(questions), np.zeros(len(questions))
            for idx in route:
                given = pool.answer(
                    [Request(idx, q.text, text) for q, text in zip(questions, texts, strict=True)]
                )
                texts = [answer.text for answer in given]
                spent += [charge(pool.cost(idx, answer), reward) for answer in given]
            best = np.maximum(
                best,
                np.array(score_answers(questions, texts, [pool.names[route[-1]]] * len(questions)))
                - reward.alpha * spent,
            )
    return best


@pytest.mark.slow
def test_the_optimum_is_brute_forces_on_fifty_questions_of_the_embedded_pool(
    project: Path, tiny_pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    config = load_config(
        Path("configs/quickstart.yaml"), ["--pool.store", str(tmp_path / "answers.sqlite")]
    )
    pool = build_pool(config)
    questions = load_splits(config.data).validation[:50]
    tree = grow(questions, pool, 2, expand_solved=False)
    for reward in (
        config.reward,
        config.reward.model_copy(update={"cost_unit": "TFLOP", "alpha": 2.0}),
    ):
        routes = optimal_routes(tree, reward)
        values = optimal_values(tree, reward)[0]
        expected = brute_force(questions, pool, 2, reward)
        assert values == pytest.approx(expected)
        assert [route.return_under(reward) for route in routes] == pytest.approx(expected)
    # Something was to be chosen
    assert len({tuple(d.expert_idx for d in route.decisions) for route in routes}) > 3


def toy_pool(make_pool: Callable) -> ExpertPool:
    """Expert 0 (1 billion) writes a draft, expert 1 (2) turns a draft into the answer, expert 2 (3)
    is right alone on "easy".
    """
    return make_pool(
        [
            lambda q, a: "draft",
            lambda q, a: "yes" if a == "draft" else "no",
            lambda q, a: "yes" if q == "easy" else "no",
        ]
    )


def test_values_by_hand(make_pool: Callable) -> None:
    questions = [
        Question("a", "easy", _reference="yes"),
        Question("b", "hard", _reference="yes"),
        Question("c", "hopeless", _reference="other"),
    ]
    tree = grow(questions, toy_pool(make_pool), 3, expand_solved=True)
    values = optimal_values(tree, REWARD)
    # easy: draft then finish 1 - .1 (1 + 2), as good as expert 2 at once; hard: the chain alone;
    # hopeless: the cheapest call.
    assert values[0] == pytest.approx([0.7, 0.7, -0.1])
    routes = [[d.expert_idx for d in route.decisions] for route in optimal_routes(tree, REWARD)]
    assert routes[1:] == [[0, 1], [0]] and routes[0] in ([2], [0, 1])
    # Fixed routes: [0, 1] is right on two of three at a cost of 3, the best.
    assert best_fixed_route(tree, REWARD) == [0, 1]
    dear = RewardConfig(alpha=0.4)  # [0, 1] returns 2/3 - 1.2, [0] -.4
    assert best_fixed_route(tree, dear) == [0]
    assert optimal_values(tree, RewardConfig(alpha=0.0))[0] == pytest.approx([1, 1, 0])


def test_growing_merges_equal_states_leaves_solved_ones_alone_and_says_what_it_needs(
    make_pool: Callable,
) -> None:
    questions = [Question("a", "easy", _reference="yes"), Question("b", "hard", _reference="yes")]
    pool, told = toy_pool(make_pool), []
    whole = grow(questions, pool, 3, expand_solved=True, on_level=lambda *level: told.append(level))
    # After one call: draft, no, yes for "easy", draft, no (twice) for "hard"; after two, three
    # answers of each.
    assert told[0] == (1, 6, 6) and told[1][:2] == (2, 15)
    assert [len(level.answers) for level in whole.levels[:2]] == [2, 5]
    assert max_calls(2, 3, 3) == 2 * (3 + 9 + 27) >= sum(calls for _, calls, _ in told)
    told.clear()
    pruned = grow(
        questions, pool, 3, expand_solved=False, on_level=lambda *level: told.append(level)
    )
    # "easy" is solved by "yes"; everything is in the store
    assert told[1][1] == 12 and all(new == 0 for _, _, new in told)
    assert optimal_values(pruned, REWARD)[0] == pytest.approx(optimal_values(whole, REWARD)[0])


def test_the_optimum_where_the_first_call_solves_every_question(make_pool: Callable) -> None:
    pool = make_pool([lambda q, a: "yes", lambda q, a: "yes"])
    tree = grow(
        [Question("a", "one", _reference="yes"), Question("b", "two", _reference="yes")],
        pool,
        3,
        expand_solved=False,
    )
    assert [len(level.answers) for level in tree.levels] == [2, 2, 0, 0]
    assert optimal_values(tree, REWARD)[0] == pytest.approx([0.9, 0.9])
    assert [[d.expert_idx for d in route.decisions] for route in optimal_routes(tree, REWARD)] == [
        [0],
        [0],
    ]


def test_an_interrupted_growth_goes_on_where_it_stopped(
    make_pool: Callable, tmp_path: Path
) -> None:
    questions = [Question(f"q{i}", f"hard {i}", _reference="yes") for i in range(4)]
    with pytest.raises(BudgetError, match="stored"):
        pool = toy_pool(make_pool)
        pool.max_calls = 12
        grow(questions, pool, 2, expand_solved=True)
    again, told = toy_pool(make_pool), []
    grow(questions, again, 2, expand_solved=True, on_level=lambda *level: told.append(level))
    assert told[0] == (1, 12, 0)  # of the first level nothing is asked twice
    assert len(AnswerStore(tmp_path / "answers.sqlite")) == again.stats.generated + 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_quality", "of_chain"), [(None, "uvwxyz"), (1.0, "uvwxyz"), (None, "u")]
)
def test_the_full_information_router_learns_the_chain_and_when_to_stop(
    make_pool: Callable,
    bert_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_quality: float | None,
    of_chain: str,
) -> None:
    monkeypatch.setattr(full_information, "STEPS", 500)
    words = [
        f"{word} {a}{b}"
        for a in "abcdefgh"
        for word, last in (("sum", "uvwxyz"), ("spell", of_chain))
        for b in last
    ]
    # "sum": expert 1 alone is right. "spell": only expert 0's draft finished by expert 2. No single
    # call tells.
    functions = [
        lambda q, a: "what",
        lambda q, a: "yes" if q.startswith("sum") else "no",
        lambda q, a: "yes" if q.startswith("spell") and a == "what" else "no",
    ]
    pool = make_pool(functions)
    questions = [Question(f"q{i}", text, _reference="yes") for i, text in enumerate(words)]
    reward = RewardConfig(alpha=0.02)
    agent = build_agent(AgentConfig(encoder=str(bert_encoder), max_tokens=32), 3, 3)
    size = len(questions) * 3 // 4
    router = fit_full_information(
        agent, grow(questions[:size], pool, 3, expand_solved=True), reward, stop_quality
    )
    test = questions[size:]
    routes = play(
        [q.sealed() for q in test],
        router,
        pool,
        NeverSatisfied() if stop_quality is None else OracleJudge(test, stop_quality, pool.names),
        3,
    )
    score_routes(routes, test, pool.names)
    # .96 and .92
    best = [1 - 0.02 * 2 if q.text.startswith("sum") else 1 - 0.02 * (1 + 3) for q in questions]
    assert np.mean([route.return_under(reward) for route in routes]) == pytest.approx(
        np.mean(best[size:]), abs=0.02
    )
    assert np.mean(best[:size]) - 0.06 < router.cross_fitted < np.mean(best[:size]) + 1e-6
    router.save(tmp_path / "fits" / "router.pt")
    again = FullInformationRouter.load(tmp_path / "fits" / "router.pt", agent)
    fresh = [Episode(q.sealed(), 3) for q in test]
    assert again.act(fresh) == router.act(fresh) and again.cross_fitted == router.cross_fitted
    hindsight = np.mean(optimal_values(grow(test, pool, 3, expand_solved=False), reward)[0])
    assert hindsight == pytest.approx(np.mean(best[size:]))


@pytest.mark.slow
def test_outcomes_that_nobody_could_foresee_are_not_counted_as_knowledge(
    make_pool: Callable, bert_encoder: Path
) -> None:
    # Either expert is right on a random half of the questions, whatever they say: hindsight gets 1,
    # nobody else more than a half.
    rng = np.random.default_rng(0)
    texts = [f"sum {a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvw"]
    lucky = dict(zip(texts, rng.integers(2, size=len(texts)), strict=True))
    pool = make_pool(
        [
            lambda q, a: "yes" if lucky[q] == 0 else "no",
            lambda q, a: "yes" if lucky[q] == 1 else "no",
        ]
    )
    questions = [Question(f"q{i}", text, _reference="yes") for i, text in enumerate(texts)]
    agent = build_agent(AgentConfig(encoder=str(bert_encoder), max_tokens=32), 2, 1)
    reward = RewardConfig(alpha=0.0)
    router = fit_full_information(agent, grow(questions[:200], pool, 1, expand_solved=True), reward)
    routes = play([q.sealed() for q in questions[200:]], router, pool, NeverSatisfied(), 1)
    score_routes(routes, questions[200:], pool.names)
    assert 0.3 < np.mean([route.quality for route in routes]) < 0.7
    # Nor expects what hindsight gets
    assert np.mean([d.value for route in routes for d in route.decisions]) < 0.9


def test_a_fit_is_known_by_what_it_was_made_from(
    bert_encoder: Path, make_pool: Callable[..., ExpertPool]
) -> None:
    agent = build_agent(AgentConfig(encoder=str(bert_encoder), max_tokens=32), 2, 1)
    pool, priced = make_pool([lambda q, a: q]), make_pool([lambda q, a: q])
    priced.experts[0].config = priced.experts[0].config.model_copy(
        update={"usd_per_million_prompt_tokens": 1.0}
    )
    given = {
        "questions": [Question("a", "A?", _reference="x")],
        "pool": pool,
        "t_max": 2,
        "reward": REWARD,
        "stop_quality": None,
    }
    key = fit_key(agent, **given)
    assert key == fit_key(agent, **given)
    questions = (
        [Question("b", "A?", _reference="x")],
        [Question("a", "A?", _reference="y")],
        [Question("a", "A!", _reference="x")],
    )
    others = (
        *({"questions": q} for q in questions),
        {"pool": priced},
        {"pool": pool.with_ktp("none-v1")},
        {"t_max": 3},
        {"reward": RewardConfig(alpha=0.2)},
        {"stop_quality": 1.0},
    )
    assert len({key, *(fit_key(agent, **given | other) for other in others)}) == 9
    next(agent.encoder.model.parameters()).data.add_(0.1)  # trained
    assert fit_key(agent, **given) != key


def test_with_all_answers_handed_on_a_tree_asks_what_a_played_route_asks(
    make_pool: Callable[..., ExpertPool],
) -> None:
    """Third calls after a, b and after b, a are told both answers; the order tells them apart."""
    functions = [lambda q, a: "x" if a is None else f"x{a.count('Answer')}", lambda q, a: "y"]
    pool = make_pool(functions).with_ktp("all-v1")
    question = Question("a", "Q?", _reference="z")
    grow([question], pool, 3, expand_solved=True)
    asked = pool.experts[0].prompts
    assert sum("Answer 1: x\n\nAnswer 2: y\n\n" in prompt for prompt in asked) == 1
    assert sum("Answer 1: y\n\nAnswer 2: x0\n\n" in prompt for prompt in asked) == 1

    def never(*arguments: object) -> str:
        raise AssertionError("a played route asks nothing that the tree did not ask")

    for expert in pool.experts:
        expert.function = never
    episode = Episode(question, 3)
    for expert_idx in (0, 1, 0):
        request = episode.propose(expert_idx)
        (answer,) = pool.answer([request])
        episode.hear(Step(expert_idx, answer, pool.cost(expert_idx, answer)))
    assert episode.answers == ["x", "y", "x2"]
