"""The benchmark's counts guard against doing again what was done before; its arithmetic is checked
by hand.
"""

import json
from collections import Counter

import numpy as np
import pytest

from config import AgentConfig
from experts import build_pool
from metrics.registry import get_metric
from questions import load_splits
from runtime.command_line import load_config
from scripts import benchmark
from scripts.support import (
    bench_encoder,
    bench_generation,
    bench_recorded,
    bench_rollouts,
    bench_store,
)
from scripts.support.bench_rollouts import Bench, Plan, exponent, repeated, stored_prompts
from scripts.support.synthetic_answers import EXPERTS, make_recording

pytestmark = pytest.mark.slow

# Per 1,000 transitions of training and validation, as measured; a change that raises one of them
# has to say why.
AT_MOST = {
    "counts/cold/generate_calls": (
        568
        # Of the library's `generate`: one reads new prompts of similar length, or adds a round of
        # tokens for all
    ),
    # Of an expert's model, over new prompts or one more token of every row
    "counts/cold/forward_passes": 3883,
    "counts/cold/encoder_rows": 1118,
    "counts/cold/store_reads": 2264,
    "counts/cold/model_loads": 13.4,
    "counts/warm/generate_calls": 0,
    "counts/warm/forward_passes": 0,
    "counts/warm/encoder_rows": 1118,
    "counts/warm/store_reads": 1264,
    "counts/warm/model_loads": 0,
}


def test_no_count_of_work_has_grown(project, monkeypatch):
    monkeypatch.chdir(project)
    figures = benchmark.main(["--quick"])
    assert figures.keys() == AT_MOST.keys()
    grown = {
        name: (count, AT_MOST[name])
        for name, count in figures.items()
        if count > 1.05 * AT_MOST[name]
    }
    assert not grown
    assert figures["counts/cold/generate_calls"] > 0


def test_an_exponent_is_the_slope_on_logarithms():
    assert exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1.0)
    assert exponent([1, 4, 16], [2, 4, 8]) == pytest.approx(0.5)


def test_every_way_of_a_rollout_makes_the_same_calls(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    config = load_config(project / "configs/quickstart.yaml", ["--data.test.limit", "6"])
    questions = load_splits(config.data).test
    bench = Bench(build_pool(config), tmp_path)
    plan = Plan.draw(questions, len(bench.pool), 2)
    assert plan.num_transitions == 12
    ways = bench_rollouts.ways_of(bench, plan)
    assert set(ways) == {"envs_64", "lockstep", "sequential", "threads"}  # however few questions
    _, wide = bench.rollout_s(plan, 6)
    _, narrow = bench.rollout_s(plan, 1)
    assert stored_prompts(wide.store) == stored_prompts(narrow.store)
    _, again = Bench(build_pool(config), tmp_path).rollout_s(plan, 6)
    # Cold, whoever measured in this folder before
    assert (again.stats.hits, again.stats.generated) == (
        0,
        wide.stats.generated,
    )
    asked, alone = {}, bench_rollouts.generate_one

    def remembered(expert, prompt):
        asked[expert.config.name, prompt] = alone(expert, prompt)
        return asked[expert.config.name, prompt]

    monkeypatch.setattr(bench_rollouts, "generate_one", remembered)
    bench.sequential_s(plan)
    keys = {
        (name, prompt): wide.key(wide.experts[wide.names.index(name)], prompt)
        for name, prompt in asked
    }
    assert asked == {call: wide.store.get_many([key])[key].text for call, key in keys.items()}
    assert len(asked) == len(wide.store)


def test_repeated_experts_have_answers_of_their_own(project):
    config = load_config(project / "configs/quickstart.yaml")
    experts = repeated(config.pool.experts, 7)
    pool = build_pool(
        config.model_copy(update={"pool": config.pool.model_copy(update={"experts": experts})})
    )
    assert len({pool.key(expert, "the same prompt") for expert in pool.experts}) == 7
    assert pool.identities[0] == pool.identities[5]


def test_the_synthetic_answers_are_right_where_their_scores_say_so(tmp_path):
    make_recording(tmp_path / "first.jsonl", 40)
    make_recording(tmp_path / "second.jsonl", 40)
    text = (tmp_path / "first.jsonl").read_text()
    assert text == (tmp_path / "second.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert Counter(row["meta"]["split"] for row in rows) == {
        "train": 16,
        "validation": 4,
        "test": 20,
    }
    metric = get_metric("numeric_match")
    for row in rows:
        references = [row["reference"]] * len(EXPERTS)
        scores = metric.compute(predictions=list(row["answers"].values()), references=references)
        assert scores == list(row["scores"].values())


def test_the_configuration_of_the_synthetic_set_is_one(tmp_path):
    config = load_config(bench_recorded.write_synthetic(tmp_path, 10))
    assert [expert.name for expert in config.pool.experts] == list(EXPERTS)
    assert len(load_splits(config.data).test) == 5


def test_continuous_batching_gives_our_answers(project, monkeypatch):
    monkeypatch.chdir(project)
    settings = [
        "--pool.experts",
        "[{name: a, source: data/tiny_pool/llama-0.2m, params_b: 1, prompt_format: plain,"
        " decoding: {max_new_tokens: 16}}]",
    ]
    config = load_config(project / "configs/quickstart.yaml", settings)
    figures = bench_generation.measure(config, 1, 8)
    assert figures["rollout_vs_continuous_batching/a"] > 0
    assert figures["rollout_vs_continuous_batching/a/differing"] == 0


def test_an_encoder_is_measured_in_both_precisions(bert_encoder):
    agent = AgentConfig(encoder=str(bert_encoder), max_tokens=32)
    figures = bench_encoder.measure(agent, 1)
    assert figures["encode_vs_fp32"] > 0
    assert 0.9 < figures["encode_vs_fp32/least_cosine"] < 1


def test_a_store_is_measured_with_answers_that_are_there(tmp_path):
    figures = bench_store.measure(tmp_path, 1000)
    assert figures["store/1000/file_mb"] > 0.1
    assert all(np.isfinite(value) for value in figures.values())
