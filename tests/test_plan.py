"""The plan of a run: numbers worked out by hand, every shipped configuration, and a real run that
stays within its bounds.
"""

import copy
import json
import random
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from scripted import ScriptedExpert
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import train_ppo_multi
from backends.answer_store import Answer, AnswerStore, StoredAnswer
from backends.hf import HFExpert
from config import (
    SPLITS,
    Config,
    EndpointExpertConfig,
    HFExpertConfig,
    RayExpertConfig,
    RecordedExpertConfig,
)
from dry_run.plan import (
    Calls,
    ExpertPlan,
    count_calls,
    count_pool_calls,
    fit_together,
    kv_bytes_per_token,
    make_plan,
    max_loads,
    prompt_tokens,
    tokens_per_second,
)
from dry_run.preflight import PREPARED, Measured, command_for, device_memory_gb, is_hub_id, measure
from dry_run.table import plan_text
from experts import Request
from runtime.command_line import load_config, read_yaml, validate
from runtime.errors import ConfigError
from scripts import prepare_data
from scripts.support.data_sources import MULTIDOMAIN, SOURCES

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def _hf(name: str = "a", **settings) -> HFExpertConfig:
    return HFExpertConfig(
        **{
            "name": name,
            "source": "some/model",
            "params_b": 1.0,
            "prompt_format": "plain",
            **settings,
        }
    )


def _config(experts: list, **settings) -> Config:
    return Config.model_validate(
        {
            "pool": {
                "experts": [expert.model_dump() for expert in experts],
                "store": "answers.sqlite",
            },
            **settings,
        }
    )


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A working directory with ten training, two validation and three test questions of 40
    characters.
    """
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 10), ("validation", 2), ("test", 3)):
        rows = [
            {"id": f"{name}{i}", "text": f"{name} {i} ".ljust(40, "x"), "reference": "1"}
            for i in range(count)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


DATA = {name: {"path": f"{name}.jsonl"} for name in ("train", "validation", "test")}


# --- numbers ---


def test_answers_are_bounded_by_questions_routes_and_episodes():
    # 2 x 5 x 10 = 100 episodes
    train = {
        "epochs": 2,
        "updates_per_epoch": 5,
        "episodes_per_update": 10,
        "num_envs": 8,
    }
    config = _config([_hf("a"), _hf("b")], env={"t_max": 3}, train=train)
    # Least: 20 - 8 = 12 training questions in a pass not yet begun anew, and 5 of validation.
    # First: min(100, 20 x 2) + min(2 x 5, 5 x 2). Later: min(100, 20 x 4) + min(10, 5 x 4), then
    # min(100, 20 x 8) + min(10, 5 x 8).
    assert count_calls(20, 5, config) == Calls(
        low=12 + 5, first=40 + 10, later=(80 + 10) + (100 + 10)
    )
    # Where nothing is handed on, every call asks a bare question: 20 x 2 and 5 x 2 prompts.
    bare = _config([_hf("a"), _hf("b")], env={"t_max": 3, "ktp": "none-v1"}, train=train)
    assert count_calls(20, 5, bare) == Calls(low=12 + 5, first=40 + 10, later=0)
    # Ten episodes in eight environments take two rounds of at most three steps; validation is one
    # round, or two past 256 questions.
    assert count_pool_calls(5, config) == 2 * (5 * 2 * 3 + 3)
    assert count_pool_calls(300, config) == 2 * (5 * 2 * 3 + 2 * 3)


def test_an_agent_over_beliefs_asks_every_expert_first():
    belief = {"reads": "belief"}
    stops = {"t_max": 3, "stop": "action", "submits": "best", "ktp": "none-v1"}
    # 1 x 1 x 10 = 10 episodes, fewer than 3 experts x 20 questions
    train = {"epochs": 1, "updates_per_epoch": 1, "episodes_per_update": 10, "num_envs": 8}
    experts = [_hf("a"), _hf("b"), _hf("c")]
    config = _config(experts, agent=belief, env=stops, train=train)
    assert count_calls(20, 5, config) == Calls(low=75, first=60 + 15, later=0)
    handed = _config(experts, agent=belief, env={**stops, "ktp": "paper-v1"}, train=train)
    # Later: min(10, 20 x 9) + min(5, 5 x 9), then min(10, 20 x 27) + min(5, 5 x 27)
    assert count_calls(20, 5, handed) == Calls(low=75, first=60 + 15, later=2 * (10 + 5))
    once = _config(experts, agent=belief, env=stops, train={**train, "refit": False})
    # Nobody but the policy asks about validation questions: 5 to min(5 x 3 calls, 5 x 3 experts)
    assert count_calls(20, 5, once) == Calls(low=60 + 5, first=60 + 15, later=0)


def test_keys_and_values_of_known_models():
    # Llama 2 7B: half a MiB
    assert (
        kv_bytes_per_token(
            LlamaConfig(num_hidden_layers=32, num_attention_heads=32, hidden_size=4096), 2
        )
        == 2 * 32 * 32 * 128 * 2
    )
    qwen = Qwen2Config(
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, hidden_size=3584
    )
    assert kv_bytes_per_token(qwen, 2) == 2 * 28 * 4 * 128 * 2  # Qwen2.5 7B: 57,344


@pytest.mark.parametrize("name", ["llama-0.2m", "neox-0.4m", "mistral-0.8m"])
def test_keys_and_values_are_what_a_real_cache_takes(tiny_pool_dir, name):
    model = AutoModelForCausalLM.from_pretrained(tiny_pool_dir / name)
    cache = model(torch.ones(1, 7, dtype=torch.long), use_cache=True).past_key_values
    taken = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_bytes_per_token(model.config, 4) == taken / 7


def test_experts_are_grouped_under_a_limit_largest_first():
    sizes = {"d": 3.0, "a": 6.0, "b": 5.0, "c": 4.0}
    assert fit_together(sizes, 10) == [["a", "c"], ["b", "d"]]
    assert fit_together(sizes, None) == [["a", "b", "c", "d"]]
    assert fit_together(sizes, 5.5) == [["a"], ["b"], ["c"], ["d"]]


def test_loads_are_one_each_and_then_those_that_cannot_stay():
    sizes = [3.0, 6.0, 5.0, 4.0]
    assert max_loads(sizes, None, 100) == 4
    assert max_loads(sizes, 18, 100) == 4
    assert max_loads(sizes, 15, 100) == 4 + 99 * 1  # 6 + 5 + 4 fit, so any three do
    assert max_loads(sizes, 10, 100) == 4 + 99 * 3  # 6 + 5 do not
    # An expert above the limit is loaded all the same
    assert max_loads(sizes, 1, 100) == 4 + 99 * 3


def test_a_pool_never_loads_more_often_than_planned(make_pool):
    rng, reached = random.Random(0), 0
    for case in range(20):
        sizes = [rng.uniform(1, 6) for _ in range(4)]
        limit = rng.uniform(5, 16)
        pool = make_pool(
            [
                ScriptedExpert(lambda q, _: q, f"e{i}", memory_gb=size)
                for i, size in enumerate(sizes)
            ],
            memory_gb=limit,
        )
        for call in range(12):
            pool.answer(
                [Request(i, f"{case}-{call}") for i in rng.sample(range(4), rng.randint(1, 4))]
            )
        assert pool.stats.loads <= max_loads(sizes, limit, 12)
        reached += pool.stats.loads > 4
    assert reached > 10  # evictions did happen


def test_a_store_tells_lengths_and_speed(tmp_path):
    store = AnswerStore(tmp_path / "answers.sqlite")
    # Completion tokens, seconds; 0 s: imported
    answers = [
        ("a", 10, 2.0),
        ("a", 30, 2.0),
        ("a", 80, 0.0),
        ("b", 7, 0.0),
    ]
    store.put_many(
        [
            StoredAnswer(bytes([i] * 16), expert, "prompt", Answer("text", 5, tokens, seconds))
            for i, (expert, tokens, seconds) in enumerate(answers)
        ]
    )
    store.close()
    found, bytes_per_answer = measure(tmp_path / "answers.sqlite")
    # (10 + 30) tokens in 4 s
    assert found == {
        "a": Measured(3, 40.0, 10.0),
        "b": Measured(1, 7.0, None),
    }
    assert bytes_per_answer == (tmp_path / "answers.sqlite").stat().st_size / 4
    assert measure(tmp_path / "none.sqlite") == ({}, None)


def test_a_broken_store_is_named_with_the_command_that_looks_at_it(tmp_path):
    (tmp_path / "answers.sqlite").write_text("no database, but long enough to be one" * 100)
    with pytest.raises(ConfigError, match=r"answers\.sqlite.*python scripts/store\.py check"):
        measure(tmp_path / "answers.sqlite")


def test_speed_is_that_of_all_replicas_and_measured_before_stated():
    one_request = Measured(5, 40.0, 10.0)
    endpoint = EndpointExpertConfig(
        name="e",
        kind="endpoint",
        model="m",
        urls=("http://a/v1", "http://b/v1"),
        concurrency=8,
        params_b=1,
        tokens_per_second=3,
    )
    assert tokens_per_second(endpoint, one_request) == 10 * 8 * 2
    assert (
        tokens_per_second(endpoint, None)
        == tokens_per_second(endpoint, Measured(5, 40.0, None))
        == 3
    )
    assert (
        tokens_per_second(
            RayExpertConfig(name="r", kind="ray", source="x/y", params_b=1, replicas=3), one_request
        )
        == 30
    )
    assert tokens_per_second(_hf(), one_request) == 10
    assert tokens_per_second(_hf(), None) is None


def test_hours_are_answers_times_tokens_over_speed():
    # 2 s an answer
    plan = ExpertPlan(
        _hf(),
        low=100,
        first=300,
        later=600,
        prompt_tokens=(50, 90),
        answer_tokens=40,
        tokens_per_second=20,
    )
    assert plan.hours == (200 / 3600, 1800 / 3600)
    assert plan.tokens_read == 300 * 50 + 600 * 90
    assert plan.tokens_written == 900 * 40
    assert ExpertPlan(_hf(), low=100, first=300, answer_tokens=40).hours is None


def test_without_a_tokenizer_four_characters_are_a_token():
    framed = _hf(prompt_format="template", prompt_template="<<{prompt}>>")
    assert prompt_tokens(framed, None, ["x" * 40, "x" * 52], "none-v1") == (
        (44 + 56) / 2 / 4,
        (44 + 56) / 2 / 4,
    )
    # 9 characters, a line break, 40 characters
    chat = _hf(prompt_format="chat", system_prompt="Be brief.")
    assert prompt_tokens(chat, None, ["x" * 40], "none-v1")[0] == 50 / 4
    first, later = prompt_tokens(_hf(), None, ["x" * 40], "paper-v1")
    # "\\nAnswer:"; then three sentences more, "(no answer)" in the first
    assert (first, later) == (
        48 / 4,
        (48 + 54 + 74 + 31) / 4,
    )


def test_a_local_tokenizer_counts_what_the_expert_will_read(tiny_pool_dir):
    expert = HFExpert(_hf(source=str(tiny_pool_dir / "llama-0.2m")), torch.device("cpu"))
    questions = ["Spell backward: house", "Spell backward: to"]
    answers = [
        pair
        for batch in expert.answer(
            [expert.render(question, None, "paper-v1") for question in questions]
        )
        for pair in batch
    ]
    first, later = prompt_tokens(expert.config, expert, questions, "paper-v1")
    assert first == sum(answer.prompt_tokens for _, answer in answers) / 2
    assert later > first + 10


# --- the whole plan ---


def test_a_plan_by_hand(workplace):
    prices = {
        "usd_per_million_prompt_tokens": 1000,
        "usd_per_million_completion_tokens": 2000,
        "tokens_per_second": 5,
    }
    expert = EndpointExpertConfig(
        name="e",
        kind="endpoint",
        model="m",
        urls=("http://a/v1",),
        params_b=1,
        decoding={"max_new_tokens": 50},
        api_key_env="NO_SUCH_KEY",
        **prices,
    )
    train = {
        "epochs": 1,
        "updates_per_epoch": 2,
        "episodes_per_update": 10,
        "num_envs": 4,
        "max_expert_calls": 9,
    }
    text = plan_text(
        make_plan(
            _config([expert], data=DATA, env={"t_max": 1}, train=train, reward={"cost_unit": "USD"})
        )
    )
    assert "train 10, validation 2, test 3; metrics: exact_match" in text
    assert "answers     8 to 12 to generate" in text  # 10 - 4 + 2; min(20, 10) + 2
    assert "test question: 5 first answers" in text
    assert "0.0 million written, 1.32 USD" in text  # 12 x 10 tokens at 0.001 and 12 x 50 at 0.002
    assert "hours       0.022 to 0.033," in text  # 8 and 12 answers of 10 s
    assert "at most (490 bytes an answer" in text  # 250 + 4 x (10 + 50)
    assert "MISSING     environment variable NO_SUCH_KEY (e)" in text
    assert "present     package openai (kind endpoint)" in text
    assert "ends the run after 9 generated" in text
    assert "memory" not in text


def test_recorded_first_answers_are_not_generated(workplace):
    Path("recorded.jsonl").write_text('{"question": "one?", "answers": {"a": "yes"}}\n')
    train = {"epochs": 1, "updates_per_epoch": 1, "episodes_per_update": 10, "num_envs": 4}
    experts = [_hf("a", first_answers="recorded.jsonl"), _hf("b")]
    plan = make_plan(_config(experts, data=DATA, env={"t_max": 2}, train=train))
    assert plan.calls == Calls(low=8, first=10 + 2, later=10 + 2)
    assert [(e.low, e.first, e.later) for e in plan.experts] == [(0, 0, 6), (4, 6, 6)]
    assert plan.bounds == (0, 24)  # all may go to a first, or to b
    # And the previous answer, of max_new_tokens at most
    assert plan.experts[0].prompt_tokens == (
        48 / 4,
        (48 + 54 + 74 + 31) / 4 + 64,
    )


def test_recorded_answers_are_read_and_checked_whole(workplace):
    Path("recorded.jsonl").write_text(
        '{"question": "one?", "answers": {"a": "yes"}}\n{"question": "two?", "answers": {"b":'
        ' "no"}}\n'
    )
    experts = [
        RecordedExpertConfig(kind="recorded", name=name, path="recorded.jsonl", params_b=1)
        for name in "ab"
    ]
    with pytest.raises(ConfigError) as error:
        make_plan(_config([*experts, _hf("c", first_answers="recorded.jsonl")], data=DATA))
    for line in (
        "recorded.jsonl:2: no answer of expert a",
        "recorded.jsonl:1: no answer of expert b",
        "no line has an answer of expert c",
    ):
        assert line in str(error.value)


def test_what_does_not_fit_is_said(workplace):
    room = device_memory_gb("cpu")
    # 0.6 of the memory each, in float32
    experts = [
        _hf("a", params_b=0.15 * room),
        _hf("b", params_b=0.15 * room),
    ]

    def planned(**pool) -> str:
        settings = _config(experts, data=DATA, device=pool.pop("device", "cpu")).model_dump()
        return plan_text(make_plan(validate({**settings, "pool": {**settings["pool"], **pool}})))

    text = planned()
    assert "no pool.memory_gb: all stay loaded; 2 loads at most" in text
    assert "TOO MUCH" in text and text.startswith("cannot be run here yet")
    assert "unpinned revision of some/model" in text
    text = planned(memory_gb=0.7 * room)
    assert ": a | b; " in text
    assert "TOO MUCH" not in text and text.startswith("can be run")
    text = planned(device="cuda:7")
    assert "MISSING     device cuda:7" in text and text.startswith("cannot be run here yet")
    assert "TOO MUCH" not in text  # nobody knows that device's memory


def test_a_dry_run_imports_nothing_that_a_row_names(workplace, monkeypatch):
    monkeypatch.syspath_prepend(str(workplace))
    (workplace / "planted.py").write_text("open('ran', 'w')\nclass Metric: pass\n")
    row = {"id": "x", "text": "why?", "reference": "1", "metric": "planted:Metric"}
    (workplace / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"test\.jsonl:1: metric 'planted:Metric' is code"):
        make_plan(_config([_hf("e")], data=DATA))
    assert not Path("ran").exists()
    listed = DATA | {"metrics": ["planted:Metric"]}  # the configuration's own: looked at
    with pytest.raises(ConfigError, match="has no attribute 'compute'"):
        make_plan(_config([_hf("e")], data=listed))
    assert Path("ran").exists()


def test_every_set_that_can_be_prepared_has_its_size_and_metrics():
    assert set(PREPARED) == set(prepare_data.NAMES)
    metrics = {name: {source.metric} for name, source in SOURCES.items()} | {
        "multidomain": {SOURCES[name].metric for name in MULTIDOMAIN}
    }
    assert {name: found for name, (_, found) in PREPARED.items()} == metrics


def test_questions_that_a_run_would_refuse_are_refused_here(workplace):
    scored = {"question": "a?", "answers": {"r": "yes"}, "scores": {"r": 1}}
    rows = [[scored], [scored | {"question": "b?"}], [scored | {"question": "c?"}]]
    for name, lines in zip(DATA, rows, strict=True):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    Path("old.jsonl").write_text(json.dumps(scored) + "\n")
    data = {name: {"path": f"{name}.jsonl", "metric": "recorded"} for name in DATA}
    replayed = RecordedExpertConfig(name="r", kind="recorded", path="old.jsonl", params_b=1)
    with pytest.raises(
        ConfigError,
        match=(
            r"(?s)2 problem.*recorded judges experts of kind recorded only; there are no scores of"
            r" what e.*old\.jsonl holds no answer to 'b\?'"
        ),
    ):
        make_plan(_config([_hf("e"), replayed], data=data))


def test_data_that_a_script_will_make_is_planned_with_its_stated_size(workplace):
    data = {
        name: {"path": f"data/gsm8k/{name}.jsonl", "limit": 300 if name == "validation" else None}
        for name in ("train", "validation", "test")
    }
    plan = make_plan(_config([_hf()], data=data))
    assert [plan.splits[name].num_questions for name in ("train", "validation", "test")] == [
        6726,
        300,
        1319,
    ]
    assert plan.experts[0].prompt_tokens[0] == (400 + 8) / 4
    assert any(
        "data/gsm8k is not here yet: python scripts/prepare_data.py gsm8k" in note
        for note in plan.notes
    )
    assert not plan.can_be_run
    assert plan_text(plan).startswith("cannot be run here yet")


def test_all_problems_are_told_at_once(workplace):
    Path("data").mkdir()
    Path("nan.sqlite").write_text("x" * 4096)
    experts = [
        _hf("a", source="data/tiny/llama"),
        _hf("b", source="data/llama"),
        _hf("c", prompt_format="few_shot", few_shot="shots.jsonl"),
        _hf("d", first_answers="old.jsonl"),
    ]
    data = {
        **DATA,
        "train": {"path": "data/gsm8k/trian.jsonl"},
        "test": {"path": "test.jsonl", "metric": "exact_mtach"},
    }
    config = _config(experts, data=data, agent={"encoder": "models/nothing"})
    config = config.model_copy(
        update={"pool": config.pool.model_copy(update={"store": "nan.sqlite"})}
    )
    with pytest.raises(ConfigError, match="8 problem") as error:
        make_plan(config)
    parts = (
        "data/gsm8k/trian.jsonl: no such file",
        "'exact_mtach'",
        "models/nothing is no folder",
        "nan.sqlite",
        "data/tiny/llama",
        "data/llama",
        "shots.jsonl",
        "old.jsonl",
    )
    assert [part for part in parts if part not in str(error.value)] == []


def test_a_chat_without_a_template_and_answers_without_room_are_refused(workplace, tiny_pool_dir):
    source = str(tiny_pool_dir / "llama-0.2m")
    with pytest.raises(ConfigError, match="no chat template"):
        make_plan(_config([_hf(source=source, prompt_format="chat")], data=DATA))
    with pytest.raises(ConfigError, match="leaves no room in its context"):
        make_plan(_config([_hf(source=source, decoding={"max_new_tokens": 100_000})], data=DATA))


def test_a_model_in_the_hub_cache_is_read_there(workplace, tiny_pool_dir, monkeypatch):
    snapshot = workplace / "hub" / "models--some--model" / "snapshots" / "abc"
    shutil.copytree(
        tiny_pool_dir / "llama-0.2m", snapshot, ignore=shutil.ignore_patterns("*.safetensors")
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workplace / "hub"))
    cached, elsewhere = make_plan(
        _config([_hf("a", revision="abc"), _hf("b", revision="abd")], data=DATA)
    ).experts
    local = make_plan(_config([_hf(source=str(tiny_pool_dir / "llama-0.2m"))], data=DATA)).experts[
        0
    ]
    assert (cached.kv_gb, cached.prompt_tokens) == (local.kv_gb, local.prompt_tokens)
    assert elsewhere.kv_gb is None


def test_a_hub_data_set_counts_as_far_as_it_is_limited(workplace):
    data = {
        **DATA,
        "train": {"path": "openai/gsm8k", "limit": 50},
        "test": {"path": "openai/gsm8k"},
    }
    plan = make_plan(_config([_hf()], data=data))
    assert [plan.splits[name].num_questions for name in ("train", "validation", "test")] == [
        50,
        2,
        0,
    ]
    assert any("state data.test.limit" in note for note in plan.notes)


def test_paths_are_told_from_hub_ids(workplace):
    Path("data").mkdir()
    assert is_hub_id("Qwen/Qwen2.5-7B-Instruct")
    assert is_hub_id("gpt2")
    assert not any(
        map(
            is_hub_id,
            ("data/llama", "models/llama", "a/b/c", "/data/llama", "./llama", "two words"),
        )
    )
    assert command_for("data/gsm8k/train.jsonl") == "python scripts/prepare_data.py gsm8k"
    assert (
        command_for("data/mixinstruct/recorded.jsonl")
        == "python scripts/prepare_data.py mixinstruct"
    )
    assert (
        command_for("data/lookahead/math/recorded.jsonl")
        == "python scripts/prepare_data.py lookahead"
    )
    assert (
        command_for("data/mmlu_pro_answers/recorded.jsonl")
        == "python scripts/prepare_data.py mmlu_pro_answers"
    )
    assert command_for("data/lookahead/recorded.jsonl") is None
    assert command_for("data/recorded/answers.jsonl").startswith("yours to provide")
    assert command_for("data/gsm9k/train.jsonl") is command_for("data/gsm8k/trian.jsonl") is None


# --- the shipped configurations ---


@pytest.fixture
def clone(tmp_path, project, monkeypatch) -> Path:
    """A working directory as after cloning: configurations and data, no models; the network and
    loading weights are errors.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(project / name)

    def refuse(*_: object) -> None:
        raise AssertionError("a dry run must not connect or load")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(HFExpert, "load", refuse)
    return tmp_path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_can_be_planned_offline(path, clone, capsys):
    assert train_ppo_multi.main(["--config", f"configs/{path.name}", "--dry_run"]) is None
    out = capsys.readouterr().out
    for expert in load_config(path).pool.experts:
        assert f"\n{expert.name} " in out
    assert not (clone / "runs").exists()


def _misspelt(settings: object) -> object:
    """Every copy of the settings in which one key has a letter too many, with that key."""
    if isinstance(settings, list):
        for index, item in enumerate(settings):
            yield from (
                (key, [*settings[:index], changed, *settings[index + 1 :]])
                for key, changed in _misspelt(item)
            )
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield (
                key,
                {
                    f"{name}x" if name == key else name: copy.deepcopy(item)
                    for name, item in settings.items()
                },
            )
            yield from ((below, {**settings, key: changed}) for below, changed in _misspelt(value))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_misspelt_key_anywhere_in_a_shipped_configuration_is_refused(path):
    settings = read_yaml(path)
    for key, changed in _misspelt(settings):
        with pytest.raises(ConfigError, match=rf"{key}x: unknown key"):
            validate(changed)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_misspelt_file_or_metric_in_a_shipped_configuration_is_refused(path, clone):
    splits = load_config(path).data
    named = [f"--data.{name}.path={getattr(splits, name).path}" for name in SPLITS]
    for option, value in (
        ("data.train.path", splits.train.path.replace(".jsonl", "x.jsonl")),
        ("agent.encoder", "models/minilm/typo"),
    ):
        with pytest.raises(ConfigError, match=value):
            train_ppo_multi.main(["--config", str(path), "--dry_run", *named, f"--{option}", value])


# --- against a real run ---


@pytest.mark.slow
def test_a_real_run_stays_within_its_bounds_and_the_next_plan_is_measured(
    project, tiny_pool_dir, bert_encoder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load((project / "configs" / "quickstart.yaml").read_text())
    for expert in settings["pool"]["experts"]:
        expert |= {
            "source": str(tiny_pool_dir / expert["name"]),
            "decoding": {"max_new_tokens": 12},
        }
    settings["data"] = {
        name: {"path": str(project / f"data/tiny_questions/{name}.jsonl"), "limit": limit}
        for name, limit in (("train", 30), ("validation", 10), ("test", 10))
    }
    settings |= {"agent": {"encoder": str(bert_encoder)}, "terminator": {"steps": 20}, "threads": 1}
    settings["train"] = {
        "epochs": 1,
        "updates_per_epoch": 2,
        "episodes_per_update": 16,
        "num_envs": 8,
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    before = make_plan(load_config(path))
    run = train_ppo_multi.main(["--config", str(path), "--name", "small"])
    generated = [
        json.loads(line).get("pool/generated")
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    in_store = sum(m.answers for m in measure(tmp_path / settings["pool"]["store"])[0].values())
    low, high = before.bounds
    assert low <= in_store <= high
    assert max(filter(None, generated)) <= in_store
    capsys.readouterr()
    after = make_plan(load_config(path))
    asked = [e for e in after.experts if e.measured]
    assert asked
    assert all(0 < e.answer_tokens <= 12 and e.hours is not None for e in asked)
    assert "measured)" in plan_text(after)


def test_a_servers_address_that_cannot_be_right_is_refused_before_the_run():
    expert = EndpointExpertConfig(
        name="e", kind="endpoint", model="m", urls=("localhost:8000/v1",), params_b=1
    )
    with pytest.raises(ConfigError, match=r"expert e: urls are http\(s\)://host:port/v1"):
        make_plan(_config([expert], data=DATA))
