import functools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM
from transformers.cache_utils import DynamicLayer

from backends.generation import (
    CHUNK_TOKENS,
    PreallocatedLayer,
    Row,
    RunningBatch,
    SeededSampling,
    StopWhenShareFinished,
)
from backends.hf import HFExpert
from config import DecodingConfig, HFExpertConfig

DECODERS = ("llama-0.2m", "neox-0.4m", "qwen2-0.4m", "mistral-0.8m")
TINY_EXPERTS = (*DECODERS, "t5gemma-0.7m")


def tiny(folder, name, **decoding):
    config = HFExpertConfig(
        name=name,
        source=str(folder / name),
        params_b=0.001,
        prompt_format="plain",
        decoding={"max_new_tokens": 40, **decoding},
    )
    expert = HFExpert(config, torch.device("cpu"))
    expert.load()
    return expert


@pytest.fixture(scope="module")
def prompts(project):
    lines = (project / "data/tiny_questions/validation.jsonl").read_text().splitlines()[:24]
    return [f"{json.loads(line)['text']}\nAnswer:" for line in lines]


def running(expert, *, in_chunks=True):
    return RunningBatch(
        expert.model,
        expert.config.decoding,
        end_ids=expert._end_ids,
        pad_id=expert.tokenizer.pad_token_id,
        in_chunks=in_chunks,
    )


def rows_of(expert, prompts):
    return [
        Row(number, ids, seed=SeededSampling.seed(expert.config.decoding, prompt))
        for number, (ids, prompt) in enumerate(zip(expert.encode(prompts)[0], prompts, strict=True))
    ]


def join(batch, expert, rows):
    batch.join(rows, *expert._inputs((), [row.ids for row in rows]))


@torch.inference_mode()
def completions(expert, prompts, *, in_chunks=True):
    """All prompts at once, to the end."""
    batch, rows = running(expert, in_chunks=in_chunks), rows_of(expert, prompts)
    join(batch, expert, rows)
    while batch.rows or batch._ended:
        batch.advance()
    return [row.completion for row in rows]


@pytest.mark.slow
def test_seeded_sampling_draws_from_the_softmax_at_its_temperature():
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    num_draws = 20_000
    logits = probabilities.log().expand(num_draws, 3)

    def shares(temperature, top_p):
        decoding = DecodingConfig(temperature=temperature, top_p=top_p)
        sampling = SeededSampling(decoding)
        sampling.rows = [
            Row(draw, [], seed=sampling.seed(decoding, str(draw))) for draw in range(num_draws)
        ]
        picked = sampling(torch.empty(num_draws, 0), logits).argmax(1)
        return (torch.bincount(picked, minlength=3) / num_draws).tolist()

    # Three standard errors of a share of .5 in 20,000 draws are .011.
    assert shares(1.0, 1.0) == pytest.approx([0.6, 0.3, 0.1], abs=0.011)
    # Temperature 2 takes square roots: .775, .548, .316 of 1.638.
    assert shares(2.0, 1.0) == pytest.approx([0.473, 0.334, 0.193], abs=0.011)
    # top_p .85 leaves .6 and .3 of .9.
    assert shares(1.0, 0.85) == pytest.approx([0.667, 0.333, 0.0], abs=0.011)


def test_the_noise_of_a_token_depends_on_its_place_alone():
    sampling, logits = SeededSampling(DecodingConfig(temperature=1.0)), torch.zeros(1, 50)
    sampling.rows, sampling.width = [Row(0, [], seed=7)], 4
    first, second = (sampling(torch.empty(1, 4 + place), logits) for place in (0, 1))
    assert not torch.equal(first, second)
    # A step that `generate` computed and dropped
    assert torch.equal(sampling(torch.empty(1, 5), logits), second)
    sampling.rows, sampling.width = [Row(0, [], seed=7, completion=[9])], 20
    assert torch.equal(sampling(torch.empty(1, 20), logits), second)  # the next round goes on there


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("name", TINY_EXPERTS)
def test_generation_in_chunks_gives_what_one_long_call_gives_and_finished_rows_leave(
    tiny_pool_dir, prompts, monkeypatch, name, temperature
):
    expert = tiny(tiny_pool_dir, name, temperature=temperature)
    rows_run, forward = [], expert.model.forward

    @functools.wraps(forward)  # generate() looks at its signature
    def counted(*args, **kwargs):
        output = forward(*args, **kwargs)
        rows_run.append(len(output.logits))
        return output

    monkeypatch.setattr(expert.model, "forward", counted)
    whole = completions(expert, prompts, in_chunks=False)
    assert set(rows_run) == {24}
    rows_run.clear()
    assert completions(expert, prompts) == whole
    # Some end in the first round, some go on
    assert min(map(len, whole)) < CHUNK_TOKENS < max(map(len, whole))
    is_over = lambda completion, num_new: len(completion) <= num_new  # noqa: E731
    expected, done = (
        [24],
        1,
        # The first token; then a round is over when half of its rows have ended, or after
        # CHUNK_TOKENS tokens;
        # the ended leave
    )
    while going := [row for row in whole if not is_over(row, done)]:
        num_tokens = min(CHUNK_TOKENS, 40 - done)
        steps = next(
            (
                n
                for n in range(1, num_tokens)
                if sum(is_over(row, done + n) for row in going) >= len(going) / 2
            ),
            num_tokens,
        )
        expected += [len(going)] * steps
        done += steps
    assert rows_run == expected
    if not temperature and name in DECODERS:  # the library alone, one prompt at a time
        ids = expert.encode(prompts[:1])[0]
        (alone,) = expert.model.generate(
            torch.tensor(ids),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=sorted(expert._end_ids),
        ).tolist()
        assert alone[len(ids[0]) :] == whole[0]


@torch.inference_mode()
def joined_now_and_then(expert, prompts, group_sizes):
    """Completions of rows that join a running batch in groups, and the widths it had."""
    batch, rows, widths = running(expert), rows_of(expert, prompts), []
    todo, sizes = list(rows), iter(group_sizes)
    while todo or batch.rows:
        assert not batch.rows or batch.takes_rows
        group, todo = todo[: (size := next(sizes, 1))], todo[size:]
        if group:
            join(batch, expert, group)
        batch.advance()
        widths.append(
            (
                batch.width,
                max((len(row.ids) + len(row.completion) for row in batch.rows), default=0),
            )
        )
    return [row.completion for row in rows], widths


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("name", DECODERS)
def test_rows_that_join_a_running_batch_get_the_completions_they_would_get_alone(
    tiny_pool_dir, prompts, name, temperature
):
    expert = tiny(tiny_pool_dir, name, temperature=temperature)
    by_length = sorted(prompts, key=len)
    # The shortest and the longest in turns
    uneven = [by_length[i // 2 if i % 2 else -1 - i // 2] for i in range(len(prompts))]
    alone = [completions(expert, [prompt])[0] for prompt in uneven]
    together, widths = joined_now_and_then(expert, uneven, [3, 1, 0, 4, 2, 0, 5])
    assert together == alone
    # No padding that all rows share is carried along
    assert all(width == longest for width, longest in widths)


@pytest.mark.slow
@pytest.mark.parametrize("window", [8, 30])  # shorter and longer than most prompts
def test_rows_join_under_a_sliding_window_too(tiny_pool_dir, prompts, tmp_path, window):
    model = AutoModelForCausalLM.from_pretrained(tiny_pool_dir / "mistral-0.8m")
    model.config.sliding_window = window
    model.save_pretrained(tmp_path / "windowed")
    AutoTokenizer.from_pretrained(tiny_pool_dir / "mistral-0.8m").save_pretrained(
        tmp_path / "windowed"
    )
    expert = tiny(tmp_path, "windowed")
    alone = []
    for prompt in prompts:
        ids = expert.encode([prompt])[0]
        output = expert.model.generate(
            torch.tensor(ids),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=sorted(expert._end_ids),
        )[0].tolist()
        alone.append(output[len(ids[0]) :])
    # The window matters
    assert alone != [
        completions(tiny(tiny_pool_dir, "mistral-0.8m"), [prompt])[0] for prompt in prompts
    ]
    together, widths = joined_now_and_then(expert, prompts, [3, 1, 0, 4, 2, 0, 5])
    assert together == alone
    assert all(width == longest for width, longest in widths)


def test_an_encoder_decoder_and_a_recurrent_model_take_rows_only_when_they_have_none(
    tiny_pool_dir, prompts
):
    expert = tiny(tiny_pool_dir, "t5gemma-0.7m")
    batch = running(expert)
    assert batch.takes_rows
    with torch.inference_mode():
        join(batch, expert, rows_of(expert, prompts))
    assert batch.rows and not batch.takes_rows
    mamba = MambaForCausalLM(
        MambaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, pad_token_id=0, eos_token_id=1
        )
    )
    batch = RunningBatch(
        mamba, DecodingConfig(max_new_tokens=2 * CHUNK_TOKENS), end_ids={1}, pad_id=0
    )
    row = Row(0, [5, 6, 7])
    batch.join(
        [row], torch.tensor([row.ids]), {"attention_mask": torch.ones(1, 3, dtype=torch.long)}
    )
    assert batch.takes_rows and batch.advance() == [row]  # it ran to its end in one call
    assert batch.work == {"generate_calls": 1, "forward_passes": len(row.completion)} and (
        row.completion[-1] == 1 or len(row.completion) == 2 * CHUNK_TOKENS
    )


def test_a_round_is_over_when_half_of_its_rows_have_ended():
    enough = StopWhenShareFinished(torch.tensor([2, 7]), num_rows=4)
    # An ended row goes on with padding
    steps = [
        ([2, 5, 5, 5], False),
        ([0, 5, 5, 5], False),
        ([0, 5, 7, 5], True),
    ]
    for last_tokens, is_over in steps:
        assert (
            enough(torch.tensor([[9, token] for token in last_tokens]), None).tolist()
            == [is_over] * 4
        )


def test_keys_and_values_are_written_behind_the_others_and_copied_only_when_there_is_no_room():
    steps = [torch.randn(3, 2, 1, 4) for _ in range(2 * CHUNK_TOKENS)]
    plain = DynamicLayer()
    plain.update(torch.zeros(3, 2, 5, 4), torch.ones(3, 2, 5, 4))
    roomy, places = PreallocatedLayer(plain), []
    for step in steps[:-1]:
        keys, values = roomy.update(step, -step)
        places.append(keys.data_ptr())
        assert all(
            torch.equal(mine, theirs)
            for mine, theirs in zip((keys, values), plain.update(step, -step), strict=True)
        )
    assert len(set(places)) == 2  # room for the first and a round more, then anew
    roomy.batch_select_indices(torch.tensor([2, 0]))
    # The room of three rows is not written to
    keys, _ = roomy.update(steps[-1][[2, 0]], steps[-1][[2, 0]])
    assert torch.equal(keys, plain.update(steps[-1], steps[-1])[0][[2, 0]])


# --- how sure the model was, and why it ended ---


@torch.inference_mode()
def reference_logprobs(expert, row):
    """Log-probabilities of a completion's tokens, from one pass over the whole text."""
    ids = torch.tensor([row.ids + row.completion])
    logits = expert.model(ids).logits[0].float()
    every = torch.log_softmax(logits[len(row.ids) - 1 : -1], dim=1)
    return every[torch.arange(len(row.completion)), torch.tensor(row.completion)]


@torch.inference_mode()
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("in_chunks", [True, False])
def test_the_log_probability_of_each_token_is_that_of_one_pass_over_the_text(
    tiny_pool_dir, prompts, temperature, in_chunks
):
    decoding = {"temperature": temperature, "top_p": 0.9}
    expert = tiny(tiny_pool_dir, "llama-0.2m", **decoding)
    batch, rows = running(expert, in_chunks=in_chunks), rows_of(expert, prompts)
    join(batch, expert, rows[:16])
    if not in_chunks:
        rows = rows[:16]
    else:
        batch.advance()
        join(batch, expert, rows[16:])
    while batch.rows or batch._ended:
        batch.advance()
    lengths = {len(row.completion) for row in rows}
    assert len(lengths) > 2
    for row in rows:
        expected = reference_logprobs(expert, row)
        assert row.logprobs == pytest.approx(expected.tolist(), abs=1e-3)
        mean, least = row.certainty
        assert mean == pytest.approx(float(expected.mean()), abs=1e-3)
        assert least == pytest.approx(float(expected.min()), abs=1e-3)


def test_noting_log_probabilities_one_step_at_a_time_gives_the_same(
    tiny_pool_dir, prompts, monkeypatch
):
    expert = tiny(tiny_pool_dir, "llama-0.2m")

    def found():
        rows = rows_of(expert, prompts)
        batch = running(expert)
        with torch.inference_mode():
            join(batch, expert, rows)
            while batch.rows or batch._ended:
                batch.advance()
        return [row.logprobs for row in rows], [row.completion for row in rows]

    together, completions_together = found()
    monkeypatch.setattr("backends.generation.LOGITS_KEPT", 1)
    one_by_one, completions_one_by_one = found()
    assert completions_one_by_one == completions_together
    for row, other in zip(one_by_one, together, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_an_answer_says_whether_it_ended_by_itself_or_ran_out_of_tokens(tiny_pool_dir, prompts):
    def answers(max_new_tokens, stop=()):
        expert = tiny(tiny_pool_dir, "llama-0.2m", max_new_tokens=max_new_tokens)
        expert.config = expert.config.model_copy(update={"stop": stop})
        found = dict(pair for batch in expert.answer(prompts) for pair in batch)
        return [found[number] for number in range(len(prompts))]

    whole = answers(40)
    ended = [answer for answer in whole if answer.finish == "stop"]
    assert {answer.finish for answer in whole} == {"stop", "length"}
    assert all(answer.completion_tokens == 40 for answer in whole if answer.finish == "length")
    cut = answers(1)
    for answer, before in zip(cut, whole, strict=True):
        if before.completion_tokens > 1:
            assert answer.finish == "length"
        assert answer.logprob_mean == answer.logprob_min
        assert answer.logprob_min >= before.logprob_min - 1e-5
    letter = ended[0].text[1]
    place = whole.index(ended[0])
    assert answers(40, (letter,))[place].finish == "stop"


def test_a_model_that_asks_no_processor_leaves_log_probabilities_unknown(tiny_pool_dir, prompts):
    expert = tiny(tiny_pool_dir, "llama-0.2m")
    generate = expert.model.generate

    def silent(*args, logits_processor, **kwargs):
        return generate(*args, **kwargs)

    expert.model.generate = silent
    answers = [answer for batch in expert.answer(prompts[:4]) for _, answer in batch]
    assert [answer.logprob_mean for answer in answers] == [None] * 4
    assert [answer.logprob_min for answer in answers] == [None] * 4
