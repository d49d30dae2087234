"""Recorded answers: read, refused, judged by their own scores, charged, routed; and as first calls
of experts that can be asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from recordings import SKILLS, make_rows, write_rows

import test_ppo_multi
import train_ppo_multi
from backends.answer_store import AnswerStore
from backends.hf import HFExpert
from backends.recorded import RecordedExpert
from config import Config, RecordedExpertConfig, RewardConfig, SourceConfig
from evaluation.route_tree import grow, optimal_routes
from evaluation.transfer import audit, reading_experts
from experts import ExpertPool, Request, build_pool
from metrics.registry import score_answers
from questions import Question, read_questions
from reward import charge
from runtime.command_line import load_config
from runtime.errors import (
    BudgetError,
    ConfigError,
    DataError,
    ExpertError,
    MetricError,
    ReferenceSealedError,
    ReportError,
)
from scripts import prepare_data


def row(question: str = "a?", answers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "question": question,
        "reference": "yes",
        "answers": answers or {"cheap": "no", "dear": "yes"},
        **more,
    }


def settings(
    path: str | list[str],
    names: tuple[str, ...] = ("cheap", "dear"),
    store: Path | None = None,
    **expert: Any,
) -> dict[str, Any]:
    experts = [
        {"name": name, "kind": "recorded", "path": path, "params_b": 1.0 + index, **expert}
        for index, name in enumerate(names)
    ]
    return {
        "device": "cpu",
        "pool": {
            "experts": experts,
            "store": str(
                store or Path(path if isinstance(path, str) else path[0]).with_suffix(".sqlite")
            ),
        },
    }


@pytest.fixture
def pool_of(tmp_path: Path) -> Callable[..., ExpertPool]:
    """`pool_of(rows, reward={"cost_unit": "USD"}, ...)`: a pool of the recorded experts `cheap` and
    `dear`.
    """

    def make(
        rows: list[Any],
        names: tuple[str, ...] = ("cheap", "dear"),
        reward: dict[str, Any] | None = None,
        **expert: Any,
    ) -> ExpertPool:
        data = settings(write_rows(tmp_path / "rec.jsonl", rows), names, **expert) | {
            "reward": reward or {}
        }
        return build_pool(Config.model_validate(data))

    return make


# --- reading ---


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "b?", "answers": {"cheap"', r"rec\.jsonl:3: Invalid JSON"),
        ("[1, 2]", r"rec\.jsonl:3: Input should be an object"),
        (row(" "), r"rec\.jsonl:3: question: "),
        ({"question": "b?", "reference": "yes"}, r"rec\.jsonl:3: answers: Field required"),
        (
            row("b?", {"cheap": "no", "dear": None}),
            r"rec\.jsonl:3: answers\.dear: Input should be a valid string",
        ),
        (
            row("b?", {"cheap": "no"}),
            r"rec\.jsonl:3: no answer of expert dear, which the pool names",
        ),
        (
            row("b?", scores={"cheap": 0.0, "daer": 1.0}),
            (
                r"rec\.jsonl:3: scores or meta name daer, which answers does not; it has"
                r" cheap, dear"
            ),
        ),
        (
            row("b?", meta={"tokens": {"cheep": 3}}),
            r"rec\.jsonl:3: scores or meta name cheep",
        ),
        (
            row(" a? ", {"cheap": "no", "dear": "perhaps"}),
            r"rec\.jsonl:3: the same question as in .*rec\.jsonl:1, with other answers",
        ),
        (
            row("a?", scores={"cheap": 1, "dear": 1}),
            r"rec\.jsonl:3: the same question as in .*rec\.jsonl:1, with other answers or scores",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_by_file_and_line(
    pool_of: Callable, line: Any, complaint: str
) -> None:
    with pytest.raises(ExpertError, match=complaint):
        pool_of([row("a?"), "", line, row("c?")])


def test_an_expert_that_no_line_has_is_refused_with_those_there_are(pool_of: Callable) -> None:
    with pytest.raises(
        ExpertError, match=r"no line has an answer of expert deer; answers are of cheap, dear"
    ):
        pool_of([row("a?")], names=("cheap", "deer"))


def test_missing_and_empty_files_are_named(tmp_path: Path, pool_of: Callable) -> None:
    with pytest.raises(ExpertError, match=r"none\.jsonl: No such file"):
        build_pool(Config.model_validate(settings(str(tmp_path / "none.jsonl"))))
    with pytest.raises(ExpertError, match=r"rec\.jsonl: no recorded answers in it"):
        pool_of(["", ""])


def test_a_file_is_read_once_for_all_its_experts_and_again_when_it_has_changed(
    pool_of: Callable,
) -> None:
    pool = pool_of([row("a?")])
    assert pool.experts[0].recording is pool.experts[1].recording
    before = pool.fingerprint()
    again = pool_of([row("a?", {"cheap": "no", "dear": "Yes!"})])
    assert again.fingerprint() != before
    assert [answer.text for answer in again.answer([Request(1, "a?")])] == ["Yes!"]


def test_three_files_are_one_recording(tmp_path: Path) -> None:
    paths = [
        write_rows(
            tmp_path / f"{name}.jsonl", [row(f"{name}?", {"cheap": name, "dear": name.upper()})]
        )
        for name in "abc"
    ]
    pool = build_pool(Config.model_validate(settings(paths)))
    assert [
        answer.text
        for answer in pool.answer([Request(0, "c?"), Request(1, "a?"), Request(1, "b?")])
    ] == ["c", "A", "B"]
    with pytest.raises(
        ExpertError, match=r"c\.jsonl:1: the same question as in .*a\.jsonl:1, with other answers"
    ):
        build_pool(
            Config.model_validate(
                settings([*paths[:2], write_rows(tmp_path / "c.jsonl", [row("a?")])])
            )
        )


# --- answering and charging ---


def test_answers_do_not_react_to_the_prompt_and_nothing_is_generated_or_loaded(
    pool_of: Callable,
) -> None:
    pool = pool_of([row("Ünï\n code?", {"cheap": "né\u2028", "dear": ""}), row("b?")])
    pool.max_calls = 0
    first, second = pool.answer(
        [Request(0, "Ünï code?"), Request(0, "Ünï code?", previous_answer="dear said this")]
    )
    assert first == second and first.text == "né\u2028" and first.latency_s == 0
    assert (pool.stats.generated, pool.stats.loads, pool.stats.replayed, len(pool.store)) == (
        0,
        0,
        1,
        1,
    )
    with pytest.raises(ExpertError, match=r"expert dear: .*rec\.jsonl holds no answer to 'c\?'"):
        pool.answer([Request(1, "b?"), Request(1, "c?")])


def test_costs_by_hand(pool_of: Callable, bert_encoder: Path) -> None:
    counted = row(
        "what is the sum?", {"cheap": "yes", "dear": "the answer"}, meta={"tokens": {"dear": 1000}}
    )
    pool = pool_of(
        [row("b?", meta={"tokens": {"cheap": 5, "dear": 5}}), counted],
        reward={"cost_unit": "billion parameters"},
        usd_per_million_completion_tokens=24.7,
    )
    costs = [
        pool.cost(idx, answer)
        for idx, answer in enumerate(
            pool.answer([Request(0, counted["question"]), Request(1, counted["question"])])
        )
    ]
    assert [(cost.params_b, cost.prompt_tokens, cost.completion_tokens) for cost in costs] == [
        (1.0, 0, 0),
        (2.0, 0, 1000),
    ]
    # 24.7 per million x 1000; 2 x 2e9 x 1000
    assert costs[1].usd == pytest.approx(0.0247) and costs[1].flops == pytest.approx(4e12)
    pool = pool_of(
        [counted],
        tokenizer=str(bert_encoder),
        usd_per_million_prompt_tokens=1.0,
        usd_per_million_completion_tokens=0.24,
        reward={"cost_unit": "USD"},
    )
    cheap, dear = pool.answer([Request(0, counted["question"]), Request(1, counted["question"])])
    assert (cheap.prompt_tokens, cheap.completion_tokens) == (5, 1)  # what is the sum ? -> yes
    assert (dear.prompt_tokens, dear.completion_tokens) == (5, 1000)  # the file's own count wins
    assert pool.cost(1, dear).usd == pytest.approx(5e-6 + 0.00024)


def test_answers_stored_before_they_were_counted_are_not_taken_for_counted_ones(
    pool_of: Callable, bert_encoder: Path
) -> None:
    assert pool_of([row("what?")]).answer([Request(1, "what?")])[0].completion_tokens == 0
    assert (
        pool_of([row("what?")], tokenizer=str(bert_encoder))
        .answer([Request(1, "what?")])[0]
        .completion_tokens
        == 1
    )


@pytest.mark.parametrize(
    ("unit", "kind"), [("tokens", "tokens"), ("TFLOP", "flops"), ("0.001 USD", "usd")]
)
def test_what_nobody_has_counted_is_not_charged_by_the_token(
    pool_of: Callable, bert_encoder: Path, unit: str, kind: str
) -> None:
    price = {"reward": {"cost_unit": unit}, "usd_per_million_completion_tokens": 1.0}
    rows = [
        row("a?", meta={"tokens": {"cheap": 3, "dear": 4}}),
        row("b?", meta={"tokens": {"cheap": 3, "dear": 0}}),
    ]
    with pytest.raises(
        ExpertError,
        match=(
            rf"rec\.jsonl:2: reward\.cost_unit charges {kind}, but meta\.tokens has no count of"
            r" dear's answer, and no tokenizer is named"
        ),
    ):
        pool_of(rows, **price)
    pool_of(rows, **price, tokenizer=str(bert_encoder))
    textless = [*rows, row("c?", {"cheap": "yes", "dear": ""}, scores={"cheap": 1, "dear": 1})]
    with pytest.raises(
        ExpertError, match=r"rec\.jsonl:3: .* count of dear's answer, and there is no text to count"
    ):
        pool_of(textless, **price, tokenizer=str(bert_encoder))
    pool_of(textless)  # parameters are known


def test_settings_that_would_charge_what_is_unknown_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings("rec.jsonl", usd_per_million_prompt_tokens=1.0)))
    with pytest.raises(ConfigError, match="usd_per_million_prompt_tokens needs a tokenizer"):
        load_config(path)
    path.write_text(yaml.safe_dump(settings("rec.jsonl")))
    with pytest.raises(
        ConfigError, match=r"seconds, but recorded answers took no time that is known: cheap, dear"
    ):
        load_config(path, ["--reward.cost_unit", "seconds"])


# --- questions and scores ---


def test_recorded_rows_are_questions_of_their_split_and_task(tmp_path: Path) -> None:
    rows = [
        row("a?", meta={"split": "train", "task": "sums"}),
        row("b?", meta={"split": "test", "id": "mine"}),
        row("c?"),
        row("d?", meta={"split": "train", "metric": "rouge_l"}),
    ]
    path = write_rows(tmp_path / "rec.jsonl", rows)
    train = read_questions(SourceConfig(path=path, split="train", metric="numeric_match"))
    assert train == [
        Question("rec-000000", "a?", "sums", "numeric_match", "yes"),
        Question("rec-000002", "c?", "default", "numeric_match", "yes"),
        Question("rec-000003", "d?", "default", "rouge_l", "yes"),
    ]
    assert [q.id for q in read_questions(SourceConfig(path=path, split="test"))] == [
        "mine",
        "rec-000002",
    ]
    path = write_rows(tmp_path / "rec.jsonl", rows[:2])
    with pytest.raises(
        DataError, match=r"rec\.jsonl: no questions of split 'validation'; it has test, train"
    ):
        read_questions(SourceConfig(path=path, split="validation"))


def test_a_question_answering_set_with_answers_of_its_own_is_still_mapped(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "squad.jsonl",
        [{"question": "Who?", "answers": {"text": ["me", "I"], "answer_start": [3, 4]}}],
    )
    (question,) = read_questions(
        SourceConfig(path=path, fields={"text": "question", "reference": "answers.text"})
    )
    assert (question.text, question.reference) == ("Who?", ["me", "I"])


def test_scores_are_mapped_from_their_range_and_sealed_like_the_reference(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rec.jsonl",
        [{"question": "a?", "answers": {"x": "", "y": "b"}, "scores": {"x": 1, "y": 7}}],
    )
    (question,) = read_questions(SourceConfig(path=path, metric="recorded", score_range=(1, 10)))
    assert question.scores == {"x": 0.0, "y": pytest.approx(2 / 3)}  # (7 - 1) / (10 - 1)
    with pytest.raises(ReferenceSealedError, match="rec-000000"):
        _ = question.sealed().scores
    assert "scores" not in repr(question)


@pytest.mark.parametrize("score", [1.5, -0.01, float("nan"), "good", None])
def test_a_score_outside_the_stated_range_is_refused_with_its_line(
    tmp_path: Path, score: Any
) -> None:
    path = write_rows(
        tmp_path / "rec.jsonl",
        [row("a?", scores={"cheap": 1}), row("b?", scores={"cheap": 0.5, "dear": score})],
    )
    with pytest.raises(
        DataError,
        match=r"rec\.jsonl:2: the score .* of dear is not in \[0, 1\]; .*data\.SPLIT\.score_range",
    ):
        read_questions(SourceConfig(path=path, metric="recorded"))
    assert len(read_questions(SourceConfig(path=path))) == 2  # nobody asked for them


def test_rows_without_the_scores_that_the_metric_needs_are_refused(
    tmp_path: Path, pool_of: Callable, make_pool: Callable
) -> None:
    path = write_rows(tmp_path / "q.jsonl", [row("a?", scores={"cheap": 1}), row("b?")])
    with pytest.raises(DataError, match=r"q\.jsonl:2: metric recorded needs scores"):
        read_questions(SourceConfig(path=path, metric="recorded"))
    (question,) = read_questions(SourceConfig(path=path, metric="recorded", limit=1))
    with pytest.raises(
        MetricError, match=r"question q-000000 .*: metric recorded, but no score of expert dear"
    ):
        pool_of([row("a?")]).check_questions([question])
    with pytest.raises(MetricError, match="there are no scores of what e0 will answer"):
        make_pool([lambda q, a: "yes"]).check_questions([question])


def test_a_question_that_is_not_in_the_recording_is_refused_before_anything_is_spent(
    pool_of: Callable,
) -> None:
    with pytest.raises(ExpertError, match=r"expert cheap: .*rec\.jsonl holds no answer to 'z\?'"):
        pool_of([row("a?")]).check_questions(
            [Question("q", "a?", _reference="yes"), Question("r", "z?", _reference="yes")]
        )


def test_given_scores_are_the_quality_even_where_the_text_is_missing() -> None:
    given = Question("a", "a?", metric="recorded", _reference="", _scores={"x": 0.25, "y": 0.75})
    judged = Question("b", "b?", _reference="yes")
    assert score_answers(
        [given, given, judged, judged], ["", "same", "yes", ""], ["x", "y", "x", "y"]
    ) == [0.25, 0.75, 1.0, 0.0]


def test_equal_texts_with_unequal_scores_stay_apart_in_the_route_tree(pool_of: Callable) -> None:
    pool = pool_of([row("a?", {"cheap": "", "dear": ""})])
    question = Question(
        "a", "a?", metric="recorded", _reference="", _scores={"cheap": 0.2, "dear": 0.9}
    )
    tree = grow([question], pool, 2, expand_solved=True)
    assert sorted(tree.levels[1].quality) == [0.2, 0.9] and len(tree.levels[2].answers) == 2
    (route,) = optimal_routes(tree, RewardConfig(alpha=0.1))
    assert [step.expert_idx for step in route.episode.steps] == [
        1
    ] and route.quality == 0.9  # .9 - .1 x 2 > .2 - .1 x 1
    judged = grow([Question("a", "a?", _reference="yes")], pool, 1, expand_solved=True)
    assert judged.levels[1].answers == [""]  # under any other metric equal texts are one state


def test_the_transfer_audit_leaves_out_experts_that_do_not_read_what_they_are_handed(
    pool_of: Callable,
) -> None:
    questions = [Question(str(i), f"{i}?", _reference="yes") for i in range(4)]
    pool = pool_of([row(f"{i}?") for i in range(4)])
    assert reading_experts(pool) == [] and audit(questions, pool, {}) == {"pairs": [], "best": []}


# --- the whole way ---


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, bert_encoder: Path) -> dict[str, Any]:
    """A run on 150 recorded questions of four experts, evaluated; one answer to a test question has
    no text.
    """
    folder = tmp_path_factory.mktemp("recorded")
    rows = make_rows(150)
    rows[-1]["answers"]["large"] = ""
    path = write_rows(folder / "rec.jsonl", rows)
    config = settings(path, tuple(SKILLS)) | {
        "threads": 1,
        "data": {
            split: {"path": path, "split": split, "metric": "recorded"}
            for split in ("train", "validation", "test")
        },
        "env": {"t_max": 2},
        "reward": {"cost_unit": "thousand tokens"},
        "agent": {"encoder": str(bert_encoder), "max_tokens": 48, "hidden_sizes": [16]},
        "train": {"epochs": 2, "updates_per_epoch": 1, "episodes_per_update": 16, "num_envs": 8},
        "terminator": {"steps": 20, "hidden_size": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = train_ppo_multi.main(["--config", str(folder / "config.yaml"), "--name", "rec"])
        results = json.loads(test_ppo_multi.main(["--run", str(run)]).read_text())
    return {"folder": folder, "run": folder / run, "rows": rows, "results": results}


def test_a_recording_trains_and_evaluates_by_its_own_scores(evaluated: dict[str, Any]) -> None:
    test_rows = [row for row in evaluated["rows"] if row["meta"]["split"] == "test"]
    found = {r["policy"]: r for r in evaluated["results"]["rows"]}
    assert evaluated["results"]["num_questions"] == len(test_rows) == 30
    for expert in SKILLS:
        assert found[expert]["quality"]["mean"] == pytest.approx(
            sum(row["scores"][expert] for row in test_rows) / 30
        )
        assert found[expert]["cost"]["completion_tokens"] == pytest.approx(
            sum(row["meta"]["tokens"][expert] for row in test_rows) / 30
        )
    assert found["all once, oracle's pick"]["quality"]["mean"] == pytest.approx(
        sum(max(row["scores"].values()) for row in test_rows) / 30
    )
    assert evaluated["results"]["evaluation"]["answers_generated"] == 0


def test_the_report_says_what_recorded_answers_cannot_show(evaluated: dict[str, Any]) -> None:
    notes = " ".join(evaluated["results"]["notes"])
    assert "Recorded answers do not react to the prompt" in notes
    assert (
        "1 of 30 test questions have a recorded answer without a text; the scores that came with"
        " them count." in notes
    )
    assert "is not known" not in notes
    assert (
        "Recorded answers do not react to the prompt"
        in (evaluated["run"] / "report" / "report.html").read_text()
    )
    routes = [
        json.loads(line) for line in (evaluated["run"] / "routes.jsonl").read_text().splitlines()
    ]
    assert all(
        step["prompt"] == route["text"]
        for route in routes
        if route["kind"] == "der"
        for step in route["steps"]
    )


@pytest.mark.slow
def test_answers_nobody_counted_are_not_priced_again_by_the_token(
    evaluated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(evaluated["folder"])
    log = evaluated["run"] / "routes.jsonl"
    counted = log.read_text()
    test_ppo_multi.main(["--run", str(evaluated["run"]), "--reprice", "flops"])
    records = [json.loads(line) for line in counted.splitlines()]
    for record in records:
        for step in record["steps"]:
            step["cost"]["completion_tokens"] *= step["expert"] != "adder"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        with pytest.raises(
            ReportError,
            match="recorded answers of adder were not counted, so they have no price in flops",
        ):
            test_ppo_multi.main(["--run", str(evaluated["run"]), "--reprice", "flops"])
    finally:
        log.write_text(counted)


def test_the_example_configuration_runs_on_the_file_its_comment_describes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "configs" / "recorded.yaml"
    comment = "".join(line.lstrip("# ") for line in path.read_text().splitlines()[1:4])
    line = json.loads(comment[comment.index("{") : comment.rindex("}") + 1])
    rows = [
        line | {"question": f"{split} {i}", "meta": line["meta"] | {"split": split}}
        for split in ("train", "validation", "test")
        for i in range(2)
    ]
    monkeypatch.chdir(tmp_path)
    write_rows(Path("data/recorded/answers.jsonl"), rows)
    config = load_config(path)
    pool, questions = build_pool(config), read_questions(config.data.test)
    pool.check_questions(questions)
    answers = pool.answer([Request(idx, questions[0].text) for idx in range(2)])
    assert [answer.text for answer in answers] == list(line["answers"].values())
    charges = [charge(pool.cost(idx, answer), config.reward) for idx, answer in enumerate(answers)]
    # Thousandths of a USD: 61 tokens at .24 and 180 at 24.7 per million
    assert charges == pytest.approx([0.01464, 4.446])


# --- first answers of experts that can be asked ---


def first_answers(path: str, name: str, expert: Any) -> dict[int, RecordedExpert]:
    return {
        0: RecordedExpert(
            RecordedExpertConfig(kind="recorded", name=name, params_b=1, path=path), first_of=expert
        )
    }


def test_first_calls_come_from_the_recording_and_the_others_are_generated(
    make_pool: Callable, scripted_expert: Callable, tmp_path: Path
) -> None:
    path = write_rows(
        tmp_path / "rec.jsonl", [row("a?", {"e": "recorded"}, meta={"tokens": {"e": 7}})]
    )
    expert = scripted_expert(lambda q, a: f"generated from {a}", "e", params_b=2.0)
    pool = make_pool([expert], first_answers=first_answers(path, "e", expert))
    first, again = pool.answer([Request(0, "a?"), Request(0, " a?")])
    assert (first.text, first.completion_tokens, again.text) == ("recorded", 7, "recorded")
    # The bare question once more
    assert pool.with_ktp("none-v1").answer([Request(0, "a?", "something")])[0].text == "recorded"
    assert (
        expert.events == []
        and expert.prompts == []
        and (pool.stats.generated, pool.stats.loads) == (0, 0)
    )
    assert pool.cost(0, first).params_b == 2.0  # charged as if generated
    second, other = pool.answer([Request(0, "a?", "recorded"), Request(0, "b?")])
    assert (second.text, other.text) == ("generated from recorded", "generated from None")
    assert (pool.stats.generated, pool.stats.loads) == (2, 1)


def test_recorded_first_answers_are_free_of_the_budget_and_keyed_by_their_file(
    make_pool: Callable, scripted_expert: Callable, tmp_path: Path
) -> None:
    expert = scripted_expert(lambda q, a: "generated", "e")
    path = write_rows(tmp_path / "rec.jsonl", [row("a?", {"e": "recorded"})])
    pool = make_pool([expert], first_answers=first_answers(path, "e", expert), max_calls=0)
    assert pool.answer([Request(0, "a?")])[0].text == "recorded"
    with pytest.raises(BudgetError):
        pool.answer([Request(0, "a?", "x")])
    plain = make_pool([expert])
    # The recording is not this model's own word
    assert plain.answer([Request(0, "a?")])[0].text == "generated"
    other = write_rows(tmp_path / "other.jsonl", [row("a?", {"e": "another"})])
    newer = make_pool([expert], first_answers=first_answers(other, "e", expert))
    assert (
        newer.answer([Request(0, "a?")])[0].text == "another"
        and newer.fingerprint() != pool.fingerprint() != plain.fingerprint()
    )
    # Later calls are shared with pools that have no recording
    assert newer.key(expert, "x") == plain.key(expert, "x")


def test_first_answers_whose_prompts_nobody_can_count_are_not_charged_by_the_token(
    scripted_expert: Callable, tmp_path: Path
) -> None:
    path = write_rows(
        tmp_path / "rec.jsonl", [row("a?", {"e": "recorded"}, meta={"tokens": {"e": 7}})]
    )
    # It has no tokenizer, as an endpoint has none
    recorded = first_answers(path, "e", scripted_expert(lambda q, a: "x", "e"))[0]
    recorded.check_charge("params")
    with pytest.raises(
        ExpertError,
        match=r"reward\.cost_unit charges usd, but nothing counts the prompts of its first_answers",
    ):
        recorded.check_charge("usd")


@pytest.mark.parametrize("kind", ["hf", "ray"])
def test_a_real_experts_recorded_first_answers_cost_what_generating_them_did(
    kind: str, tiny_pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "ray":
        pytest.importorskip(
            "ray", reason="experts of kind ray need pip install -r requirements-optional.txt"
        )
    questions = [
        "Spell this word backward (example: sun -> nus): planet",
        "Spell this word backward (example: sun -> nus): tree",
    ]
    expert = {
        "name": "llama",
        "source": str(tiny_pool_dir / "llama-0.2m"),
        "params_b": 0.0002,
        "prompt_format": "plain",
    }
    config = {
        "device": "cpu",
        "pool": {"experts": [expert], "store": str(tmp_path / "a.sqlite")},
        "reward": {"cost_unit": "thousand tokens"},
    }
    generated = build_pool(Config.model_validate(config)).answer(
        [Request(0, question) for question in questions]
    )
    path = write_rows(
        tmp_path / "rec.jsonl",
        [
            row(question, {"llama": answer.text})
            for question, answer in zip(questions, generated, strict=True)
        ],
    )
    expert |= {"kind": kind, "first_answers": path}
    config["pool"]["store"] = str(tmp_path / "b.sqlite")
    monkeypatch.setattr(HFExpert, "load", lambda self: pytest.fail("an expert was loaded"))
    pool = build_pool(Config.model_validate(config))
    replayed = pool.answer([Request(0, question) for question in questions])
    assert [(a.text, a.prompt_tokens, a.completion_tokens) for a in replayed] == [
        (a.text, a.prompt_tokens, a.completion_tokens) for a in generated
    ]
    assert len(AnswerStore(tmp_path / "b.sqlite")) == 2 and pool.stats.loads == 0


def mixinstruct_config(folder: Path, source: Path, encoder: Path) -> dict[str, Any]:
    """A short training on prepared MixInstruct; the experts' weights, of `source`, nobody reads."""
    recorded = folder / "mixinstruct" / "recorded.jsonl"
    names = json.loads(recorded.read_text().splitlines()[0])["answers"]
    shared = {"source": str(source), "prompt_format": "plain", "first_answers": str(recorded)}
    experts = []
    for number, name in enumerate(names, start=1):
        experts.append({"name": name, "params_b": float(number), **shared})
    data = {}
    for split in ("train", "validation", "test"):
        data[split] = {"path": str(folder / "mixinstruct" / f"{split}.jsonl")}
    return {
        "device": "cpu",
        "threads": 1,
        "data": data,
        "pool": {"store": str(folder / "a.sqlite"), "experts": experts},
        "env": {"t_max": 1},  # first calls alone
        "agent": {"encoder": str(encoder), "max_tokens": 48, "hidden_sizes": [16]},
        "train": {"epochs": 1, "updates_per_epoch": 2, "episodes_per_update": 8, "num_envs": 4},
        "terminator": {"steps": 10, "hidden_size": 8},
    }


@pytest.mark.slow
def test_mixinstruct_goes_from_its_upstream_schema_to_a_trained_agent_with_no_expert_loaded(
    project: Path,
    tiny_pool_dir: Path,
    bert_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = str(project / "tests" / "fixtures" / "mixinstruct")
    out = tmp_path / "mixinstruct"
    prepare_data.main(["mixinstruct", "--source", source, "--out", str(out)])
    config = mixinstruct_config(tmp_path, tiny_pool_dir / "llama-0.2m", bert_encoder)
    names = [expert["name"] for expert in config["pool"]["experts"]]
    asked = set()
    for split in config["data"].values():  # BERTScore's model is not here: ROUGE-L judges
        path = Path(split["path"])
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        asked |= {row["text"] for row in rows}
        write_rows(path, [row | {"metric": "rouge_l"} for row in rows])
    recorded = (out / "recorded.jsonl").read_text().splitlines()
    assert len(names) == 11
    assert asked == {json.loads(line)["question"] for line in recorded}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HFExpert, "load", lambda self: pytest.fail("an expert was loaded"))
    run = train_ppo_multi.main(["--config", "c.yaml", "--name", "mix"])
    assert (run / "agent" / "model.safetensors").is_file()
    results = json.loads(test_ppo_multi.main(["--run", str(run)]).read_text())
    assert results["evaluation"]["answers_generated"] == 0
    assert 0 < results["rows"][0]["quality"]["mean"] <= 1
    assert results["rows"][0]["cost"]["prompt_tokens"] > 0
    assert any(note.startswith(f"First calls of {names[0]}, ") for note in results["notes"])


def test_how_a_recorded_answer_ended_is_read_and_kept(pool_of: Callable) -> None:
    told = row(
        "b?",
        meta={
            "finish": {"dear": "length"},
            "logprob_mean": {"dear": -0.25},
            "logprob_min": {"dear": -1.5, "cheap": -2},
        },
    )
    pool = pool_of([told, row("c?")])
    requests = [Request(1, "b?"), Request(0, "b?"), Request(1, "c?")]
    for answers in (pool.answer(requests), pool.answer(requests)):  # the second from the store
        found = [(a.finish, a.logprob_mean, a.logprob_min) for a in answers]
        assert found == [("length", -0.25, -1.5), ("", None, -2.0), ("", None, None)]
    assert pool.stats.hits == 3


@pytest.mark.parametrize(
    "meta",
    [
        {"finish": {"dear": "tired"}},
        {"logprob_mean": {"dear": 0.5}},
        {"logprob_min": {"dear": "much"}},
        {"finish": {"daer": "stop"}},
        {"tokens": {"dear": 10**30}},  # more than a store could hold
        {"tokens": {"dear": -1}},
    ],
)
def test_what_is_told_of_a_recorded_answer_is_checked(pool_of: Callable, meta: dict) -> None:
    with pytest.raises(ExpertError, match=r"rec\.jsonl:1: "):
        pool_of([row("b?", meta=meta)])
