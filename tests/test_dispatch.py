import os
import subprocess
import sys
import threading

import pytest
from scripted import ScriptedExpert

from backends.dispatch import Dispatcher, Inbox
from experts import Request
from questions import Question
from rollout import Decision, NeverSatisfied, play
from runtime.errors import BudgetError, ExpertError


def word(question, previous_answer):
    return question if previous_answer is None else f"{previous_answer}{question}"


class Slow(ScriptedExpert):
    """Takes `rounds` turns for every answer, taking in whatever comes meanwhile; `log` keeps who
    had a turn.
    """

    def __init__(self, name, rounds, log=None, **kwargs):
        super().__init__(word, name, **kwargs)
        self.rounds, self.log = rounds, [] if log is None else log

    def answer(self, prompts):
        self.num_answer_calls += 1
        inbox, left = Inbox.of(prompts), {}
        while inbox or left:
            left |= {(number, prompt): self.rounds for number, prompt in inbox.take()}
            assert self.is_loaded, f"{self.config.name} was evicted while it was at work"
            self.log.append(self.config.name)
            left = {key: rounds - 1 for key, rounds in left.items()}
            ended = [key for key, rounds in left.items() if not rounds]
            left = {key: rounds for key, rounds in left.items() if rounds}
            yield [(number, self._answer(prompt)) for number, prompt in ended]


class Far(ScriptedExpert):
    """A remote expert."""

    is_remote = True


class Sender(Dispatcher):
    """A dispatcher that keeps what it brings: (expert, key, text)."""

    def __init__(self, *experts, memory_gb=None):
        super().__init__(experts, memory_gb)
        self.kept = []

    def step(self):
        self.advance(
            lambda idx, rows: self.kept.extend(
                (idx, key, None if answer is None else answer.text) for key, _, answer in rows
            )
        )

    def drain(self):
        while not self.is_idle:
            self.step()


def ask(sender, idx, *questions):
    for question in questions:
        sender.submit(
            idx,
            f"{idx} {question}".encode(),
            sender.experts[idx].render(question, None, "paper-v1"),
        )


def test_an_inbox_numbers_its_prompts_as_they_come():
    inbox = Inbox(["a", "b"])
    assert inbox.put("c") == 2
    assert inbox.take(2) == [(0, "a"), (1, "b")]
    assert (inbox.put("d"), len(inbox), inbox.take(), inbox.take(), len(inbox)) == (
        3,
        2,
        [(2, "c"), (3, "d")],
        [],
        0,
    )
    assert Inbox.of(inbox) is inbox


def test_what_is_asked_while_an_expert_is_at_work_joins_that_work():
    expert = Slow("a", rounds=2)
    sender = Sender(expert)
    ask(sender, 0, "x", "y")
    sender.step()
    assert sender.kept == []
    ask(sender, 0, "z")
    sender.step()
    assert sender.kept == [(0, b"0 x", "x"), (0, b"0 y", "y")]
    sender.step()
    assert sender.kept[2:] == [(0, b"0 z", "z")]
    assert expert.num_answer_calls == 1
    assert sender.is_idle
    ask(sender, 0, "later")
    sender.drain()
    assert (sender.kept[3:], expert.num_answer_calls, sender.num_loads) == (
        [(0, b"0 later", "later")],
        2,
        1,
    )


def test_the_expert_with_most_to_do_has_its_turn_first():
    log = []
    sender = Sender(Slow("a", 1, log), Slow("b", 1, log), Slow("c", 1, log))
    ask(sender, 0, "x")
    ask(sender, 1, "x", "y", "z")
    ask(sender, 2, "x", "y")
    sender.drain()
    assert log == ["b", "c", "a"]


def test_what_arrives_as_a_stream_is_ending_is_asked_in_the_next():
    class Deaf(Far):
        def answer(self, prompts):
            for number, prompt in prompts.take():
                yield [(number, self._answer(prompt))]
            ended.set()
            asked.wait(10)

    ended, asked = threading.Event(), threading.Event()
    sender = Sender(Deaf(word))
    ask(sender, 0, "x")
    sender.step()
    assert ended.wait(10)
    ask(sender, 0, "y")
    asked.set()
    sender.drain()
    assert [text for _, _, text in sender.kept] == ["x", "y"]


def test_remote_experts_work_at_the_same_time_as_each_other_and_as_the_local_ones():
    together = threading.Barrier(2, timeout=10)

    def meets(question, previous_answer):
        together.wait()
        return word(question, previous_answer)

    sender = Sender(Far(meets, "a"), Slow("b", 3), Far(meets, "c"))
    for idx in range(3):
        ask(sender, idx, "x")
    sender.drain()
    assert sorted(sender.kept) == [(0, b"0 x", "x"), (1, b"1 x", "x"), (2, b"2 x", "x")]


@pytest.mark.parametrize(
    "error",
    [ExpertError("expert b: no power"), RuntimeError("CUDA error: no power")],
    ids=["ours", "another's"],
)
def test_when_one_expert_fails_the_others_finish_and_the_error_is_raised_once(
    scripted_expert, error
):
    def fails(question, previous_answer):
        raise error

    # b has the first turn
    sender = Sender(scripted_expert(fails, "b"), Slow("a", 3), Far(word, "c"))
    for idx in range(3):
        ask(sender, idx, "x", "y")
    with pytest.raises(type(error), match="no power"):
        sender.drain()
    assert sorted(text for _, _, text in sender.kept) == ["x", "x", "y", "y"]
    assert sender.is_idle
    ask(sender, 1, "z")
    sender.drain()
    assert sender.kept[-1] == (1, b"1 z", "z")


def test_an_expert_that_cannot_be_loaded_is_an_error_after_the_others_have_finished():
    class Heavy(ScriptedExpert):
        def load(self):
            raise ExpertError("expert heavy: too large")

    sender = Sender(Heavy(word, "heavy"), Slow("a", 2))
    ask(sender, 0, "x")
    ask(sender, 1, "x")
    with pytest.raises(ExpertError, match="too large"):
        sender.drain()
    assert sender.kept == [(1, b"1 x", "x")]


def test_an_expert_at_work_is_not_evicted_and_whoever_was_asked_first_is_loaded_first():
    events = []
    sender = Sender(*(Slow(name, 2, memory_gb=1.0, events=events) for name in "abc"), memory_gb=1.0)
    ask(sender, 0, "x")
    sender.step()
    ask(sender, 2, "x")
    ask(sender, 1, "x")
    ask(sender, 0, "y")  # joins
    sender.drain()
    assert events == ["load a", "unload a", "load c", "unload c", "load b"]
    assert len(sender.kept) == 4


def test_nobody_is_evicted_where_that_makes_no_room_yet_and_remote_experts_never():
    events = []
    local = [
        Slow(name, 3, memory_gb=gb, events=events)
        for name, gb in (("a", 2.0), ("b", 1.0), ("c", 2.0))
    ]
    sender = Sender(*local, Far(word, "far", memory_gb=9.0, events=events), memory_gb=3.0)
    ask(sender, 1, "x")
    sender.drain()
    ask(sender, 3, "x")
    sender.drain()
    ask(sender, 0, "x")
    sender.step()
    ask(sender, 2, "x")  # wants 2 of 3 GB: b alone could give one, and a is at work
    sender.step()
    assert "unload b" not in events
    sender.drain()
    # b stays until a has finished
    assert events == [
        "load b",
        "load far",
        "load a",
        "unload b",
        "unload a",
        "load c",
    ]
    assert sender.kept[-1] == (2, b"2 x", "x")


@pytest.mark.slow
def test_the_end_of_the_process_does_not_wait_for_a_remote_request(project):
    code = (
        "import sys, time\n"
        "from test_dispatch import Far, Sender, ask, word\n"
        "class Stuck(Far):\n"
        "    def answer(self, prompts):\n"
        "        time.sleep(60)\n"
        "        yield []\n"
        "sender = Sender(Stuck(word), Far(word, 'b'))\n"
        "ask(sender, 0, 'x')\n"
        "ask(sender, 1, 'x')\n"
        "sender.step()\n"
        "print(sender.kept)\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(project), str(project / "tests")])
    }
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50
    )
    assert ran.stdout == "[(1, b'1 x', 'x')]\n", ran.stderr


def test_experts_of_one_identity_are_asked_once_and_both_answered(make_pool):
    class Twin(Slow):
        def identity(self):
            return {"kind": "twin"}

    pool = make_pool([Twin("a", 2), Twin("b", 2)], max_calls=1)
    assert [answer.text for answer in pool.answer([Request(0, "x"), Request(1, "x")])] == ["x", "x"]
    assert (pool.experts[0].prompts, pool.experts[1].prompts, pool.stats.generated) == (
        ["x"],
        [],
        1,
    )
    assert pool._dispatcher.is_idle


def test_no_question_waits_for_another_ones_answer(make_pool):
    class ByName:
        def act(self, episodes):
            return [Decision(int(e.question.text[0])) for e in episodes]

    order = []
    pool = make_pool([Slow("slow", 9), Slow("fast", 1)])
    pool.on_generated = lambda _: order.extend(
        prompt for expert in pool.experts for prompt in expert.prompts if prompt not in order
    )
    questions = [Question(id=text, text=text) for text in ("0 long", "1 quick", "1 short")]
    routes = play(questions, ByName(), pool, NeverSatisfied(), t_max=3)
    assert [route.episode.answer for route in routes] == [
        "0 long" * 3,
        "1 quick" * 3,
        "1 short" * 3,
    ]
    assert ["long" in prompt for prompt in order] == [False] * 6 + [True] * 3


def test_equal_requests_under_way_are_asked_once_and_answered_all(make_pool):
    pool = make_pool([Slow("a", 2)])
    (first,) = pool.start([Request(0, "x")])
    (second,) = pool.start([Request(0, "x")])
    assert first.answer is None is second.answer
    while first.answer is None:
        pool.advance()
    assert first.answer == second.answer
    assert pool.experts[0].prompts == ["x"]
    assert (pool.stats.requests, pool.stats.hits, pool.stats.generated) == (2, 0, 1)


def test_over_the_budget_what_is_under_way_is_finished_and_stored_first(make_pool):
    pool = make_pool([Slow("a", 3)], max_calls=2)
    pool.start([Request(0, "x"), Request(0, "y")])
    with pytest.raises(
        BudgetError, match=r"max_expert_calls = 2: 2 answers generated, 1 more needed"
    ):
        pool.start([Request(0, "z")])
    assert len(pool.store) == 2
    assert [call.answer.text for call in pool.start([Request(0, "x"), Request(0, "y")])] == [
        "x",
        "y",
    ]
