import functools
import gc
import hashlib
import json
import shutil
from dataclasses import replace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from scripted import ScriptedExpert
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from backends.answer_store import Answer, StoredAnswer
from backends.generation import Row
from backends.hf import HFExpert
from config import Config, HFExpertConfig, SourceConfig
from experts import Request, build_pool
from prompts import Message, knowledge_transfer_prompt
from questions import Question, read_questions
from rollout import Decision, NeverSatisfied, play
from runtime.errors import BudgetError, ConfigError, ExpertError, PromptError
from runtime.machine import pick_device

TINY_EXPERTS = ("llama-0.2m", "neox-0.4m", "qwen2-0.4m", "t5gemma-0.7m", "mistral-0.8m")
CPU = torch.device("cpu")


def echo(question, previous_answer):
    return f"{question} after {previous_answer}"


# --- the pool, over scripted experts
# ---------------------------------------------------------------------------------


def test_equal_requests_are_looked_up_once_generated_once_and_answered_all(make_pool, monkeypatch):
    pool = make_pool([echo])
    lookups = []
    get_many = pool.store.get_many
    monkeypatch.setattr(
        pool.store, "get_many", lambda keys: get_many(lookups.append(list(keys)) or lookups[-1])
    )
    requests = [Request(0, "a"), Request(0, "b"), Request(0, "a"), Request(0, "a", "b")]
    answers = pool.answer(requests)
    assert [a.text for a in answers] == [
        "a after None",
        "b after None",
        "a after None",
        "a after b",
    ]
    assert pool.experts[0].prompts == ["a", "b", knowledge_transfer_prompt("a", "b")]
    # One look-up for all; what follows are read-backs of what was written
    assert len(lookups[0]) == 4
    assert (pool.stats.requests, pool.stats.hits, pool.stats.generated) == (4, 0, 3)
    lookups.clear()
    assert pool.answer(requests) == answers
    assert len(lookups) == 1
    assert pool.experts[0].num_answer_calls == 1
    assert pool.stats.hit_rate == 0.5  # 4 of 8


def test_interleaved_requests_are_grouped_by_expert_and_answered_in_order(make_pool):
    pool = make_pool([lambda q, _: f"zero {q}", lambda q, _: f"one {q}"])
    answers = pool.answer([Request(i % 2, str(i)) for i in range(6)])
    assert [a.text for a in answers] == ["zero 0", "one 1", "zero 2", "one 3", "zero 4", "one 5"]
    assert [e.num_answer_calls for e in pool.experts] == [1, 1]
    assert pool.experts[1].prompts == ["1", "3", "5"]


def test_the_budget_is_checked_before_anything_is_generated_and_stored_answers_are_free(make_pool):
    pool = make_pool([echo, echo], max_calls=3)
    pool.answer([Request(0, "a"), Request(1, "a")])
    with pytest.raises(
        BudgetError, match=r"max_expert_calls = 3: 2 answers generated, 2 more needed"
    ):
        pool.answer([Request(0, "b"), Request(1, "b")])
    assert [e.prompts for e in pool.experts] == [["a"], ["a"]]
    # One new answer, the third
    pool.answer([Request(0, "a"), Request(1, "a"), Request(1, "c"), Request(1, "c")])
    assert pool.stats.generated == 3


def test_a_pool_with_room_for_one_gives_the_same_answers_and_loads_each_expert_once_a_call(
    make_pool, scripted_expert, tmp_path
):
    from backends.answer_store import AnswerStore

    events = []
    small = make_pool([scripted_expert(echo, name, events=events) for name in "abc"], memory_gb=1.0)
    roomy = make_pool(
        [scripted_expert(echo, name) for name in "abc"],
        store=AnswerStore(tmp_path / "other.sqlite"),
    )
    first = [Request(i % 3, f"q{i}") for i in range(9)]
    assert small.answer(first) == roomy.answer(first)
    assert events == ["load a", "unload a", "load b", "unload b", "load c"]
    second = [Request(0, "more"), Request(1, "more"), Request(2, "more")]
    assert small.answer(second) == roomy.answer(second)
    # c, still loaded, is asked first
    assert events[5:] == [
        "unload c",
        "load a",
        "unload a",
        "load b",
    ]
    assert (small.stats.loads, roomy.stats.loads) == (5, 3)


def test_the_least_recently_used_expert_leaves_first(make_pool, scripted_expert):
    events = []
    pool = make_pool([scripted_expert(echo, name, events=events) for name in "abc"], memory_gb=2.0)
    for expert_idx, question in ((0, "1"), (1, "1"), (0, "2"), (2, "1")):
        pool.answer([Request(expert_idx, question)])
    assert events == ["load a", "load b", "unload b", "load c"]


def test_a_writer_that_comes_second_goes_on_with_the_first_answer(make_pool, scripted_expert):
    fast = make_pool([scripted_expert(lambda q, _: "first", "shared")])

    def overtaken(question, previous_answer):
        # Another process finishes while this one generates
        fast.answer([Request(0, question, previous_answer)])
        return "second"

    slow = make_pool([scripted_expert(overtaken, "shared")])
    assert slow.answer([Request(0, "a")])[0].text == "first"


def test_batches_finished_before_a_failure_are_kept(make_pool, scripted_expert):
    def fails_at_c(question, previous_answer):
        if question == "c":
            raise RuntimeError("power cut")
        return question

    pool = make_pool([scripted_expert(fails_at_c, batch_size=1)])
    with pytest.raises(RuntimeError, match="power cut"):
        pool.answer([Request(0, q) for q in "abcd"])
    again = make_pool([scripted_expert(lambda q, _: "anew")])
    assert [a.text for a in again.answer([Request(0, q) for q in "abcd"])] == [
        "a",
        "b",
        "anew",
        "anew",
    ]


def test_the_answer_follows_the_thinking_part_and_the_store_keeps_the_whole_text(make_pool):
    def thinks(question, previous):
        return "<think>a long way" if question == "hard?" else f"<think>hm</think>\n{previous} 72"

    pool = make_pool([thinks])
    for _ in range(2):  # generated, then found in the store
        never, answer = pool.answer([Request(0, "hard?"), Request(0, "easy?", "71")])
        assert (never.text, never.whole_text) == ("", "<think>a long way")
        assert (answer.text, answer.whole_text) == ("71 72", "<think>hm</think>\n71 72")
        assert answer.completion_tokens == 3  # words: what was thought is paid for
    stored = pool.store.get_many(
        [pool.key(pool.experts[0], pool.render(Request(0, "easy?", "71")))]
    )
    assert [kept.text for kept in stored.values()] == ["<think>hm</think>\n71 72"]
    assert (pool.stats.empty_answers, pool.stats.never_ended_thinking) == (2, 2)


def test_an_expert_names_its_own_thinking_tags(make_pool, scripted_expert):
    text = "<plan>x</plan>7 <think>8</think>"
    expert = scripted_expert(lambda q, _: text, thinking_tags=["plan"])
    (answer,) = make_pool([expert]).answer([Request(0, "Why?")])
    assert answer.text == "7 <think>8</think>"


def test_an_empty_answer_is_stored_counted_and_passed_on_as_no_answer(make_pool):
    pool = make_pool([lambda q, previous: "" if previous is None else "something"])
    (silence,) = pool.answer([Request(0, "Why?")])
    assert (silence.text, silence.completion_tokens, pool.stats.empty_answers) == ("", 0, 1)
    pool.answer([Request(0, "Why?", silence.text)])
    assert "from another student: (no answer)\n" in pool.experts[0].prompts[1]
    # Silence is an answer: a second call is not the first one again
    assert pool.stats.generated == 2
    pool.answer([Request(0, "Why?")])
    assert pool.stats.generated == 2


def test_stored_answers_cost_what_they_cost_when_generated(make_pool):
    pool = make_pool([echo, echo])  # e1 has 2 billion parameters
    requests = [Request(1, "two words")]
    fresh, again = (pool.cost(1, pool.answer(requests)[0]) for _ in range(2))
    assert fresh == again
    # "two words after None"
    assert (fresh.params_b, fresh.prompt_tokens, fresh.completion_tokens, fresh.latency_s) == (
        2.0,
        2,
        4,
        0.5,
    )
    assert fresh.flops == 2 * 2e9 * 6


# --- Hugging Face experts
# --------------------------------------------------------------------------------------------


def tiny(folder, name, *, max_batch_size=128, max_batch_tokens=16384, **more):
    values = {
        "params_b": 0.001,
        "prompt_format": "plain",
        "decoding": {"max_new_tokens": 40},
        **more,
    }
    return HFExpert(
        HFExpertConfig(name=name, source=str(folder / name), **values),
        CPU,
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
    )


def ask(expert, prompts):
    """Answers in the order of the prompts, and how many came at a time."""
    batches = [batch for batch in expert.answer(prompts) if batch]
    answers = dict(pair for batch in batches for pair in batch)
    return [answers[i] for i in range(len(prompts))], [len(batch) for batch in batches]


@pytest.fixture(scope="module")
def prompts(project):
    """Rendered prompts of very different lengths, bare and with the Knowledge Transfer Prompt."""
    lines = (project / "data/tiny_questions/validation.jsonl").read_text().splitlines()[:14]
    questions = [json.loads(line)["text"] for line in lines]
    texts = questions + [
        knowledge_transfer_prompt(question, "a draft"[: i % 8])
        for i, question in enumerate(questions[:6])
    ]
    return [f"{text}\nAnswer:" for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_EXPERTS)
def test_a_batch_of_many_gives_what_batches_of_one_and_transformers_itself_give(
    tiny_pool_dir, prompts, name
):
    together, sizes = ask(tiny(tiny_pool_dir, name, max_batch_tokens=1000), prompts)
    alone, ones = ask(tiny(tiny_pool_dir, name, max_batch_size=1), prompts)
    assert max(sizes) > 1 < len(sizes)  # several batches of several prompts
    assert ones == [1] * len(prompts)
    tokenizer = AutoTokenizer.from_pretrained(tiny_pool_dir / name)
    is_seq2seq = name.startswith("t5")
    model = (AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM).from_pretrained(
        tiny_pool_dir / name
    )
    for prompt, one, many in zip(prompts, alone, together, strict=True):
        # No padding, no attention mask to get wrong
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
        )[0]
        new = output[1:] if is_seq2seq else output[ids.shape[1] :]
        expected = (tokenizer.decode(new, skip_special_tokens=True).strip(), ids.shape[1], len(new))
        assert (one.text, one.prompt_tokens, one.completion_tokens) == expected
        assert (
            many.text,
            many.prompt_tokens,
            many.completion_tokens,
        ) == expected  # its own length: no padding counted


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY_EXPERTS if not name.startswith("t5")])
def test_keys_and_values_of_the_worked_examples_are_computed_once_and_change_no_answer(
    tiny_pool_dir, project, tmp_path, monkeypatch, name
):
    few_shot = {"prompt_format": "few_shot", "few_shot": str(tmp_path / "examples.jsonl")}
    example = {
        "question": "Spell this word backward (example: sun -> nus): planet",
        "previous_answer": "tenal",
        "answer": "tenalp",
    }
    (tmp_path / "examples.jsonl").write_text(json.dumps(example) + "\n")
    questions = [
        json.loads(line)["text"]
        for line in (project / "data/tiny_questions/validation.jsonl").read_text().splitlines()[:12]
    ]
    # All prompts of a prefix are read together
    monkeypatch.setattr("backends.hf.SPARED_TOKENS", 10**6)
    expert = tiny(tiny_pool_dir, name, **few_shot)
    texts = [
        expert.render(question, previous, "paper-v1")
        for question in questions
        for previous in (None, "a draft")
    ]
    read = []
    expert.load()
    forward = expert.model.forward

    @functools.wraps(forward)  # generate() looks at its signature
    def counted(*args, **kwargs):
        read.append((args[0] if args else kwargs["input_ids"]).numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(expert.model, "forward", counted)
    reused, _ = ask(expert, texts)
    prefixes = sorted(expert._prefix_caches, key=len)
    assert [
        sum(tuple(expert.tokenizer(text)["input_ids"][: len(o)]) == o for text in texts)
        for o in prefixes
    ] == [12, 12]
    # Each prefix read once, alone
    assert sorted(n for n in read if n in map(len, prefixes)) == [len(o) for o in prefixes]
    num_read, read[:] = sum(read), []
    monkeypatch.setattr("backends.hf.MIN_PREFIX", 10**6)
    whole = tiny(tiny_pool_dir, name, **few_shot)
    whole.model = expert.model
    plain, _ = ask(whole, texts)
    # The prompt's length counts the prefix
    assert [replace(a, latency_s=0.0) for a in reused] == [replace(a, latency_s=0.0) for a in plain]
    # All but one of its twelve readings were saved
    assert num_read <= sum(read) - 11 * sum(map(len, prefixes))
    alone, _ = ask(tiny(tiny_pool_dir, name, max_batch_size=1, **few_shot), texts)
    assert [a.text for a in alone] == [a.text for a in plain]


def test_a_prefix_is_not_reused_where_a_sliding_window_or_a_recurrent_state_would_see_the_padding(
    tiny_pool_dir, tmp_path
):
    (tmp_path / "examples.jsonl").write_text(
        json.dumps({"question": "ab" * 20, "previous_answer": "c", "answer": "d"}) + "\n"
    )
    expert = tiny(
        tiny_pool_dir,
        "mistral-0.8m",
        prompt_format="few_shot",
        few_shot=str(tmp_path / "examples.jsonl"),
    )
    expert.load()
    ids = expert.encode([expert.render("ba", None, "paper-v1")])[0][0]
    assert len(expert._prefix_of(ids)) >= 32
    expert.model_config.sliding_window = len(ids) + 40
    assert len(expert._prefix_of(ids)) >= 32
    expert.model_config.sliding_window = len(ids) + 39  # 40 new tokens
    assert expert._prefix_of(ids) == ()
    expert.model_config.sliding_window = None
    expert.model._is_stateful = True
    del expert._reuses_prefixes  # looked at once
    assert expert._prefix_of(ids) == ()


SETTINGS = (
    *(
        {"forced_eos_token_id": 2},
        {"min_new_tokens": 5},
        {"exponential_decay_length_penalty": [3, 1.5]},
        {"begin_suppress_tokens": [5, 6, 7, 8]},
    ),
    *({"use_cache": False}, {"cache_implementation": "static"}, {"repetition_penalty": 1.5}),
)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: next(iter(setting)))
@pytest.mark.parametrize("name", ["llama-0.2m", "t5gemma-0.7m"])
def test_a_models_own_generation_settings_mean_in_a_batch_what_they_mean_alone(
    tiny_pool_dir, tmp_path, prompts, name, setting
):
    shutil.copytree(tiny_pool_dir / name, tmp_path / name)
    path = tmp_path / name / "generation_config.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | setting))
    expert = tiny(tmp_path, name)
    together = [answer.text for answer in ask(expert, prompts)[0]]
    assert together == generated_alone(expert, prompts)
    assert any(together)


def generated_alone(expert, prompts):
    """What the model's own `generate` makes of each prompt by itself."""
    out = []
    for prompt in prompts:
        ids = torch.tensor(expert.encode([prompt])[0])
        settings = {
            "max_new_tokens": expert.config.decoding.max_new_tokens,
            "do_sample": False,
            "eos_token_id": sorted(expert._end_ids),
            "pad_token_id": 0,
        }
        new = expert.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0]
        out.append(
            expert.tokenizer.decode(
                new if expert.model_config.is_encoder_decoder else new[ids.shape[1] :],
                skip_special_tokens=True,
            ).strip()
        )
    return out


ATTENTION = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.2,
    "max_position_embeddings": 400,
}
NEO = {
    "hidden_size": 64,
    "num_layers": 4,
    "num_heads": 4,
    "window_size": 24,
    "attention_types": [[["global", "local"], 2]],
    "max_position_embeddings": 400,
}
ARCHITECTURES = {
    # use_cache: false
    "mpt": lambda **v: MptForCausalLM(
        MptConfig(
            d_model=64,
            n_heads=4,
            n_layers=3,
            max_seq_len=512,
            attn_config={"alibi": True},
            initializer_range=0.2,
            **v,
        )
    ),
    "gpt_neo": lambda **v: GPTNeoForCausalLM(GPTNeoConfig(**NEO, initializer_range=0.2, **v)),
    "lfm2": lambda **v: Lfm2ForCausalLM(
        Lfm2Config(
            **ATTENTION, num_key_value_heads=4, layer_types=["conv", "full_attention"] * 2, **v
        )
    ),
    "llama4": lambda **v: Llama4ForCausalLM(
        Llama4TextConfig(
            **ATTENTION,
            num_key_value_heads=4,
            head_dim=16,
            attention_chunk_size=24,
            num_local_experts=2,
            intermediate_size_mlp=96,
            **v,
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_windows_convolutions_and_counted_positions_give_in_a_batch_what_they_give_alone(
    tiny_pool_dir, project, tmp_path, name
):
    (tmp_path / "examples.jsonl").write_text(
        json.dumps(
            {
                "question": "Spell this word backward: planet",
                "previous_answer": "tenal",
                "answer": "tenalp",
            }
        )
        + "\n"
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_pool_dir / "llama-0.2m", model_max_length=400)
    torch.manual_seed(0)
    model = ARCHITECTURES[name](
        vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, 0.0, 0.15)
    model.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    expert = tiny(
        tmp_path,
        name,
        prompt_format="few_shot",
        few_shot=str(tmp_path / "examples.jsonl"),
        max_batch_size=6,
    )
    questions = [
        json.loads(line)["text"]
        for line in (project / "data/tiny_questions/validation.jsonl").read_text().splitlines()[:12]
    ]
    texts = [expert.render(question, None, "paper-v1") for question in questions]
    together = [answer.text for answer in ask(expert, texts)[0]]
    assert len(expert._prefixes) > 0 and len(set(together)) > 6
    assert together == generated_alone(expert, texts)


def test_code_from_a_hub_is_handed_whole_prompts(tiny_pool_dir, tmp_path):
    (tmp_path / "examples.jsonl").write_text(
        json.dumps({"question": "ab" * 20, "previous_answer": "c", "answer": "d"}) + "\n"
    )
    few_shot = {"prompt_format": "few_shot", "few_shot": str(tmp_path / "examples.jsonl")}
    for trusts, reuses in ((False, True), (True, False)):
        expert = tiny(tiny_pool_dir, "llama-0.2m", trust_remote_code=trusts, **few_shot)
        expert.load()
        ids = expert.encode([expert.render("2 + 2?", None, "paper-v1")])[0][0]
        assert bool(expert._prefix_of(ids)) == reuses


def test_batches_stay_under_the_token_budget_longest_prompts_first(
    tiny_pool_dir, prompts, monkeypatch
):
    expert = tiny(tiny_pool_dir, "llama-0.2m", max_batch_tokens=1000, max_batch_size=7)
    expert.load()
    shapes, begun, generate = [], [], expert.model.generate

    def counted(**kwargs):
        shapes.append((*kwargs["input_ids"].shape, kwargs["max_new_tokens"]))
        if "past_key_values" not in kwargs:
            begun.extend(kwargs["attention_mask"].sum(1).tolist())
        return generate(**kwargs)

    monkeypatch.setattr(expert.model, "generate", counted)
    ask(expert, prompts)
    assert max(rows for rows, _, _ in shapes) == 7
    assert all(rows * (width + new) <= 1000 for rows, width, new in shapes)
    assert begun == sorted((len(ids) for ids in expert.encode(prompts)[0]), reverse=True)


def test_prompts_of_unequal_length_are_read_apart_where_it_spares_padding(tiny_pool_dir):
    expert = tiny(tiny_pool_dir, "llama-0.2m")
    expert.load()

    def lengths_read_together(*lengths):
        return [
            [len(row.ids) for row in rows]
            for _, rows in expert._groups(
                [Row(number, [5] * length) for number, length in enumerate(lengths)]
            )
        ]

    # 4 x 80 tokens of padding, more than 256
    assert lengths_read_together(100, 98, 20, 19, 18, 17) == [
        [100, 98],
        [20, 19, 18, 17],
    ]
    assert lengths_read_together(100, 98, 20, 19, 18) == [[100, 98, 20, 19, 18]]  # 3 x 80
    assert lengths_read_together(400, 100, 10) == [[400], [100, 10]]
    expert.model_config.is_encoder_decoder = True
    assert lengths_read_together(400, 100, 10) == [[400, 100, 10]]  # these start together


@pytest.mark.slow
def test_seeded_sampling_repeats_itself_in_any_batch_and_changes_with_the_seed(
    tiny_pool_dir, prompts
):
    def sample(seed, **limits):
        decoding = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 0.95, "seed": seed}
        return [
            a.text
            for a in ask(tiny(tiny_pool_dir, "qwen2-0.4m", decoding=decoding, **limits), prompts)[0]
        ]

    together = sample(1)
    assert sample(1) == together
    assert sample(1, max_batch_size=1) == together
    assert sample(1, max_batch_size=3) == together
    assert sample(2) != together
    greedy = [
        a.text
        for a in ask(tiny(tiny_pool_dir, "qwen2-0.4m", decoding={"max_new_tokens": 12}), prompts)[0]
    ]
    assert together != greedy


# 256 less 40 new ones; an encoder has all 256
@pytest.mark.parametrize(("name", "room"), [("llama-0.2m", 216), ("t5gemma-0.7m", 256)])
def test_a_prompt_longer_than_the_context_loses_its_middle_and_is_flagged(
    tiny_pool_dir, name, room
):
    expert = tiny(tiny_pool_dir, name)
    long_prompt = "start" + "x" * 400 + "end\nAnswer:"
    (kept,), (cut,) = expert.encode([long_prompt])
    assert cut
    assert len(kept) == room
    text = expert.tokenizer.decode(kept, skip_special_tokens=True)
    assert text.startswith("startxxx")
    assert text.endswith("xxxend\nAnswer:")
    (answer, short), _ = ask(expert, [long_prompt, "abc\nAnswer:"])
    assert (answer.prompt_tokens, answer.prompt_cut, short.prompt_cut) == (room, True, False)


def test_new_tokens_that_fill_the_whole_context_are_refused(tiny_pool_dir):
    with pytest.raises(
        ExpertError, match="max_new_tokens 255 leaves no room in its context of 256 tokens"
    ):
        ask(tiny(tiny_pool_dir, "llama-0.2m", decoding={"max_new_tokens": 255}), ["abc"])


def test_a_missing_model_folder_and_a_broken_one_are_told_apart(tiny_pool_dir, tmp_path):
    missing = HFExpert(
        HFExpertConfig(name="gone", source=str(tmp_path / "no-such-model"), params_b=1.0), CPU
    )
    with pytest.raises(
        ExpertError,
        match=(
            r"expert gone: cannot load '.*no-such-model': there is no such folder, and the hub has"
            r" no such model or cannot be reached"
        ),
    ):
        missing.identity()
    shutil.copytree(tiny_pool_dir / "llama-0.2m", tmp_path / "llama-0.2m")
    (tmp_path / "llama-0.2m" / "model.safetensors").unlink()
    with pytest.raises(
        ExpertError,
        match=(
            r"expert llama-0\.2m: cannot load '.*': the folder exists, so a file in it is missing"
            r" or broken"
        ),
    ):
        tiny(tmp_path, "llama-0.2m").load()
    shutil.copy(
        tiny_pool_dir / "llama-0.2m" / "config.json", tmp_path / "llama-0.2m" / "model.safetensors"
    )
    with pytest.raises(ExpertError, match="a file in it is missing or broken"):
        tiny(tmp_path, "llama-0.2m").load()


def test_a_base_model_asked_to_chat_is_refused(tiny_pool_dir):
    with pytest.raises(
        Exception, match="no chat template: a base model wants prompt_format plain or few_shot"
    ):
        tiny(tiny_pool_dir, "llama-0.2m", prompt_format="chat").render("Why?", None, "paper-v1")


@pytest.mark.slow
def test_an_answer_ends_before_a_stop_string_and_generation_with_it(tiny_pool_dir, prompts):
    answers, _ = ask(tiny(tiny_pool_dir, "neox-0.4m"), prompts)
    # A token a letter, then the end
    spelt = [
        i
        for i, a in enumerate(answers)
        if a.completion_tokens == len(a.text) + 1 and len(set(a.text)) > 2
    ]
    prompt, full = prompts[spelt[0]], answers[spelt[0]]
    # A letter that is new there
    at = next(
        i
        for i in range(2, len(full.text))
        if full.text[i] not in full.text[:i] and full.text[i] != " "
    )

    def stopped_at(stop):
        (answer,), _ = ask(tiny(tiny_pool_dir, "neox-0.4m", stop=[stop]), [prompt])
        return answer.text, answer.completion_tokens

    # The stop letter was generated, and nothing after it
    assert stopped_at(full.text[at]) == (
        full.text[:at].strip(),
        at + 1,
    )
    assert stopped_at(full.text[0]) == ("", 1)
    # Two tokens: ends the text, not the generation
    assert stopped_at(full.text[at - 1 : at + 1]) == (
        full.text[: at - 1].strip(),
        full.completion_tokens,
    )


def test_an_experts_identity_changes_with_whatever_changes_its_answers(tiny_pool_dir, tmp_path):
    variants = [
        {},
        {"dtype": "bfloat16"},
        {"prompt_format": "chat"},
        {"prompt_format": "chat", "system_prompt": "Be brief."},
        {"stop": ["\n"]},
    ]
    identities = [tiny(tiny_pool_dir, "llama-0.2m", **more).identity() for more in variants]
    identities.append(tiny(tiny_pool_dir, "qwen2-0.4m").identity())
    shutil.copytree(tiny_pool_dir / "llama-0.2m", tmp_path / "llama-0.2m")
    # The same weights elsewhere are the same expert
    assert tiny(tmp_path, "llama-0.2m").identity() == identities[0]
    for position in (0, -1):  # a bit of the first weight, or of the last, in a file of 5 MB
        folder = tmp_path / f"retrained {position}"
        shutil.copytree(tiny_pool_dir / "mistral-0.8m", folder / "mistral-0.8m")
        weights = folder / "mistral-0.8m" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[position if position else 8 + int.from_bytes(data[:8], "little")] ^= (
            1  # safetensors: length of the header, header, weights
        )
        weights.write_bytes(data)
        identities.append(tiny(folder, "mistral-0.8m").identity())
    identities.append(tiny(tiny_pool_dir, "mistral-0.8m").identity())
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 9
    renamed = tiny(tiny_pool_dir, "llama-0.2m", params_b=9.0).identity()
    assert renamed == identities[0]  # a price is no part of an answer


def test_a_batch_that_does_not_fit_the_gpu_is_halved_until_it_does(
    tiny_pool_dir, prompts, monkeypatch
):
    monkeypatch.setattr("backends.hf.SPARED_TOKENS", 10**6)  # all prompts are read together
    # Seeded by the prompt, so that prompts must keep to their rows
    sampling = {
        "max_new_tokens": 12,
        "temperature": 1.0,
    }
    expected, _ = ask(tiny(tiny_pool_dir, "llama-0.2m", decoding=sampling), prompts)
    expert = tiny(tiny_pool_dir, "llama-0.2m", decoding=sampling)
    expert.load()
    generate, tried = expert.model.generate, []

    def at_most_three(**kwargs):
        tried.append(len(kwargs["input_ids"]))
        if tried[-1] > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return generate(**kwargs)

    monkeypatch.setattr(expert.model, "generate", at_most_three)
    answers, sizes = ask(expert, prompts)
    assert [replace(a, latency_s=0.0) for a in answers] == [
        replace(a, latency_s=0.0) for a in expected
    ]
    assert tried[:4] == [20, 10, 5, 2]
    assert max(sizes) <= 3


@pytest.mark.slow
def test_running_out_of_memory_in_the_middle_loses_no_prompt_and_answers_none_twice(
    tiny_pool_dir, prompts, monkeypatch
):
    expected, _ = ask(tiny(tiny_pool_dir, "llama-0.2m", max_batch_size=8), prompts)
    expert = tiny(tiny_pool_dir, "llama-0.2m", max_batch_size=8)
    expert.load()
    generate, calls, refused = expert.model.generate, [], []

    def full_now_and_then(**kwargs):
        calls.append(kwargs["max_new_tokens"])
        # Rows have just joined others
        if len(calls) > 2 and calls[-2] == 1 < calls[-1] and not refused:
            refused.append(len(kwargs["input_ids"]))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return generate(**kwargs)

    monkeypatch.setattr(expert.model, "generate", full_now_and_then)
    numbered = [pair for batch in expert.answer(prompts) for pair in batch]
    assert refused == [8]
    assert sorted(number for number, _ in numbered) == list(range(len(prompts)))
    assert [
        replace(answer, latency_s=0.0) for _, answer in sorted(numbered, key=lambda pair: pair[0])
    ] == [replace(answer, latency_s=0.0) for answer in expected]


def test_prompts_wait_where_a_models_cache_cannot_take_them_in(tiny_pool_dir, prompts, monkeypatch):
    monkeypatch.setattr("backends.hf.SPARED_TOKENS", 10)  # many groups
    expected, _ = ask(tiny(tiny_pool_dir, "llama-0.2m"), prompts)
    monkeypatch.setattr("backends.generation.PLAIN_LAYERS", ())  # no kind of cache is known
    monkeypatch.setattr("backends.generation.RunningBatch._concat_left_padded", None)
    answers, _ = ask(tiny(tiny_pool_dir, "llama-0.2m"), prompts)
    assert [replace(answer, latency_s=0.0) for answer in answers] == [
        replace(answer, latency_s=0.0) for answer in expected
    ]


def test_a_single_prompt_that_does_not_fit_the_gpu_is_an_error(tiny_pool_dir, monkeypatch):
    expert = tiny(tiny_pool_dir, "llama-0.2m")
    expert.load()

    def never(**kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(expert.model, "generate", never)
    with pytest.raises(ExpertError, match=r"llama-0\.2m: a single prompt of 4 tokens does not fit"):
        ask(expert, ["abc\nAnswer:"])


@pytest.mark.slow
def test_a_rollout_of_five_experts_with_room_for_two_ends_with_the_same_answers(
    tiny_pool_dir, project, tmp_path
):
    expert_configs = [
        {
            "name": name,
            "source": str(tiny_pool_dir / name),
            "params_b": 1.0,
            "prompt_format": "plain",
            "decoding": {"max_new_tokens": 8},
        }
        for name in TINY_EXPERTS
    ]
    questions = read_questions(
        SourceConfig(path=str(project / "data/tiny_questions/validation.jsonl"), limit=20)
    )

    class InTurn:
        def act(self, episodes):
            return [Decision((int(e.question.id[-3:]) + len(e.steps)) % 5) for e in episodes]

    def rollout(store, memory_gb):
        pool_config = {
            "experts": expert_configs,
            "store": str(tmp_path / store),
            "memory_gb": memory_gb,
        }
        pool = build_pool(Config.model_validate({"pool": pool_config, "device": "cpu"}))
        routes = play(questions, InTurn(), pool, NeverSatisfied(), t_max=3)
        return [step.answer.text for route in routes for step in route.episode.steps], pool

    roomy, pool = rollout("a.sqlite", None)
    assert (pool.stats.loads, sum(e.model is not None for e in pool.experts)) == (5, 5)
    # A billion float32 parameters, as each claims to have: 4 GB
    tight, pool = rollout("b.sqlite", 8.0)
    assert tight == roomy
    assert sum(e.model is not None for e in pool.experts) == 2
    assert 5 <= pool.stats.loads <= 5 + 3 + 3  # each at most once a step, and two are there already


@pytest.mark.slow
def test_an_evicted_expert_gives_its_memory_back(tmp_path, bert_encoder):
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=8,
    )
    for name in ("a", "b"):
        model = LlamaForCausalLM(config)
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(bert_encoder).save_pretrained(tmp_path / name)
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert weights > 200e6
    del model
    experts = [
        {
            "name": name,
            "source": str(tmp_path / name),
            "params_b": weights / 4e9,
            "prompt_format": "plain",
            "decoding": {"max_new_tokens": 1},
        }
        for name in ("a", "b")
    ]
    pool_config = {
        "experts": experts,
        "store": str(tmp_path / "s.sqlite"),
        "memory_gb": 1.5 * weights / 1e9,
    }
    pool, used = build_pool(Config.model_validate({"pool": pool_config, "device": "cpu"})), []
    for turn in range(4):
        pool.answer([Request(turn % 2, f"what is {turn}")])
        gc.collect()
        used.append(psutil.Process().memory_info().rss)
    assert pool.stats.loads == 4
    assert max(used) - used[0] < 0.5 * weights  # never a second one beside the first


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ConfigError, match="device cuda:99: not available here"):
        pick_device("cuda:99")
    assert pick_device("cpu") == CPU


@pytest.fixture(scope="module")
def smollm2(project):
    folder = project / "models" / "smollm2-135m-instruct-q4"
    if not folder.is_dir():
        pytest.skip(
            "models/smollm2-135m-instruct-q4 is not here: run python scripts/get_small_llms.py"
        )
    config = HFExpertConfig(
        name="smollm2",
        source=str(folder),
        params_b=0.134515,
        prompt_format="chat",
        decoding={"max_new_tokens": 24},
    )
    return HFExpert(config, CPU)


@pytest.mark.slow
def test_a_real_small_llm_knows_the_capital_of_france_and_stops_when_it_has_said_so(
    smollm2, monkeypatch
):
    prompt = smollm2.render("What is the capital of France?", None, "paper-v1")
    assert prompt.endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    smollm2.load()
    original, new_tokens = smollm2.model.generate, []

    def counted(**kwargs):
        output = original(**kwargs)
        new_tokens.append(output.sequences.shape[1] - kwargs["input_ids"].shape[1])
        return output

    monkeypatch.setattr(smollm2.model, "generate", counted)
    (answer,), _ = ask(smollm2, [prompt])
    assert "Paris" in answer.text
    assert answer.prompt_tokens == len(
        smollm2.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    )
    # Its padding token is its end token: generation must still end at it
    assert sum(new_tokens) == answer.completion_tokens


def test_answers_survive_the_store_as_they_were(make_pool):
    pool = make_pool([echo])
    kept = Answer("text", 5, 3, 0.125, prompt_cut=True)
    key = pool.key(pool.experts[0], pool.render(Request(0, "a")))
    pool.store.put_many([StoredAnswer(key, "e0", "a", kept)])
    assert pool.answer([Request(0, "a")]) == [kept]
    assert pool.stats.cut_prompts == 1


# --- damaged model folders ---


def damaged_copy(tiny_pool_dir, tmp_path, change):
    """A copy of an embedded model whose tensors `change` edits in place."""
    folder = shutil.copytree(tiny_pool_dir / "llama-0.2m", tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without_a_layer(tensors):
    for name in [name for name in tensors if ".layers.0." in name]:
        del tensors[name]


def with_a_nan(tensors):
    tensors[min(tensors)].view(-1)[3] = float("nan")


def of_another_shape(tensors):
    name = min(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name][:8].clone()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_a_layer, r"weights are missing, first model\.layers\.0\."),
        (with_a_nan, "1 weights are not a number"),
        (of_another_shape, r"expert damaged: cannot load"),
    ],
)
def test_damaged_weights_are_refused_before_any_answer(tiny_pool_dir, tmp_path, change, said):
    folder = damaged_copy(tiny_pool_dir, tmp_path, change)
    config = HFExpertConfig(
        name="damaged", source=str(folder), params_b=0.001, prompt_format="plain"
    )
    with pytest.raises(ExpertError, match=said):
        HFExpert(config, CPU).load()


def test_a_pool_whose_chat_template_refuses_is_known_before_anything_is_asked(make_pool):
    class Refusing(ScriptedExpert):
        def render(self, question, previous_answer, ktp, context=()):
            raise PromptError("expert e0: the chat template refuses the messages")

    pool = make_pool([Refusing(echo, "e0")])
    with pytest.raises(PromptError, match="expert e0: the chat template refuses"):
        pool.check_questions([Question("q", "What?", _reference="x")])


def test_what_was_said_before_is_part_of_an_answers_key(make_pool):
    pool = make_pool([echo])
    context = (Message("user", "Hello"), Message("assistant", "Hello!"))
    pool.answer([Request(0, "Why?"), Request(0, "Why?", context=context)])
    assert pool.stats.generated == 2
    assert "User: Hello" in pool.experts[0].prompts[1]
    pool.answer([Request(0, "Why?", context=context)])
    assert pool.stats.hits == 1


def test_a_question_without_context_keeps_the_key_it_had(make_pool):
    """The key is that of a store that was written before conversations were known."""
    pool = make_pool([echo])
    identity = {"kind": "scripted", "name": "e0"}
    canonical = json.dumps([identity, "Why?", pool.experts[0].decoding()], sort_keys=True)
    key = hashlib.sha256(canonical.encode()).digest()[:16]
    assert pool.key(pool.experts[0], pool.render(Request(0, "Why?"))) == key
