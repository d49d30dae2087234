"""Expert kind `ray`: the `hf` model as Ray actors, on one machine or many.

Prompts are rendered and counted here; the weights live in actors (replicas), each where Ray finds
the GPUs and CPUs it asks for. One replica is enough to go on; the others join as room is found,
also after a node was lost. Experts answer at the same time; where they do not fit beside each
other, the least recently used one that is not answering leaves. The project's modules travel with
the connection; the model must be on every node, under the same path or on a hub.
"""

from __future__ import annotations

import collections
import copy
import functools
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from backends.answer_store import Answer
from backends.dispatch import Inbox
from backends.hf import HFExpert
from config import PoolConfig, RayExpertConfig
from prompts import Message
from runtime.errors import ConfigError, DERError, ExpertError

try:
    import ray
except ModuleNotFoundError as error:
    raise ConfigError(
        "experts of kind ray need the package ray: pip install -r requirements-optional.txt"
    ) from error
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

POLL_S = 0.2  # between two looks whether more is asked, while a replica has nothing to do
# Without room for this long, another expert of this process leaves; a freed GPU takes a second or
# two to be seen
EVICT_AFTER_S = 5.0
MAX_LOSSES = 3  # replicas lost in a row, for each one wanted, without an answer in between
# What an actor imports
TRAVELLING = ("backends", "runtime", "settings", "config.py", "prompts.py", "questions.py")
OBJECT_STORE_BYTES = 100 << 20  # of a cluster started here: prompts and answers are small

# Experts of this process that hold resources, the least recently used first
Rows = list[tuple[int, str]]  # numbers and prompts

_placed: dict[RayExpert, None] = {}
_lock = threading.Lock()  # of _placed and of who is answering


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start one on this machine; once in a process.

    Raises ExpertError.
    """
    if ray.is_initialized():
        return
    root = Path(__file__).parents[1]
    # Not the whole project: runs/ and models/ would be sent to every node
    modules = [str(root / name) for name in TRAVELLING]
    options = {
        "runtime_env": {"py_modules": modules},
        "log_to_driver": False,
        "logging_level": logging.WARNING,
    }
    try:
        if address is None:
            # A cluster started here sends no usage statistics
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(
                "local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options
            )
        else:
            host, _, port = address.rpartition("/")[2].rpartition(":")
            if port.isdigit():
                # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "start one with `ray start --head`, or set it to null to start one on this machine"
        raise ExpertError(
            f"pool.ray_address {address}: no Ray cluster can be joined there; {hint}. {error}"
        ) from error


class Replica:
    """An actor: one copy of the model, wherever Ray has put it."""

    def __init__(self, expert: HFExpert, identity: dict[str, Any]):
        self.expert, self.identity = expert, identity

    def answer(self, prompts: list[str]) -> list[Answer]:
        """Answers in the order of the prompts.

        Raises ExpertError when this node's weights are not the driver's.
        """
        if self.expert.model is None:
            self._check_weights()
        answers: dict[int, Answer] = {}
        for batch in self.expert.answer(prompts):
            answers.update(batch)
        return [answers[index] for index in range(len(prompts))]

    def _check_weights(self) -> None:
        source, where = (
            Path(self.expert.source),
            f"expert {self.expert.config.name}, node {ray.util.get_node_ip_address()}",
        )
        if source.is_absolute() and not source.is_dir():
            raise ExpertError(
                f"{where}: {source} does not exist there. Every node needs the model under this"
                " path; or name a hub id"
            )
        if self.expert.identity() != self.identity:
            raise ExpertError(
                f"{where}: the model under {source} differs from the one on this machine. Copy the"
                " same files to every node; pin the revision of a hub id"
            )


class Slot:
    """Resources for one replica, and the replica once Ray has found them."""

    def __init__(self, wanted: dict[str, float]):
        self.group = placement_group([wanted])
        self.replica: Any = None

    @property
    def is_placed(self) -> bool:
        return placement_group_table(self.group)["state"] == "CREATED"

    def ask(self, rows: Rows) -> Any:
        """Start answering; returns the call, as Ray knows it."""
        return self.replica.answer.remote([prompt for _, prompt in rows])


class RayExpert:
    """A `dispatch.Expert`.

    Its identity is the hf kind's, so that both share the answers of a store.
    """

    is_remote = True

    def __init__(self, config: RayExpertConfig, pool: PoolConfig):
        self.config, self.address, self.wait_s = config, pool.ray_address, pool.ray_wait_s
        device = torch.device("cuda" if config.num_gpus else "cpu")
        # For prompts; its weights are not loaded
        self.local = HFExpert(
            config,
            device,
            max_batch_tokens=pool.max_batch_tokens,
            max_batch_size=pool.max_batch_size,
        )
        if Path(self.local.source).is_dir():
            # An actor works in another folder
            self.local.source = str(Path(self.local.source).absolute())
        # For the actors, without the tokenizer that `local` will hold
        self._unopened = copy.copy(self.local)
        self._wanted = {"CPU": config.num_cpus} | (
            {"GPU": config.num_gpus} if config.num_gpus else {}
        )
        self._slots: list[Slot] = []
        self._is_answering = False

    def identity(self) -> dict[str, Any]:
        return self._identity

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """Taken once: the store's keys are made of it, and every replica's weights are held against
        it.
        """
        return self.local.identity()

    def decoding(self) -> dict[str, Any]:
        return self.local.decoding()

    @property
    def tokenizer(self) -> Any:
        return self.local.tokenizer

    def render(
        self,
        question: str,
        previous_answer: str | None,
        ktp: str,
        context: Sequence[Message] = (),
    ) -> str:
        return self.local.render(question, previous_answer, ktp, context)

    @property
    def memory_gb(self) -> float:
        """None of this process's: Ray's resources decide which experts are loaded."""
        return 0.0

    def load(self) -> None:
        """Join the cluster. Raises ExpertError."""
        connect(self.address)

    def find_room(self) -> None:
        """See that there is room for at least one replica, after other experts of this process have
        left where they must.

        Raises ExpertError when the cluster has none within `pool.ray_wait_s`.
        """
        with _lock:
            _placed.pop(self, None)
        while len(self._slots) < self.config.replicas:
            self._slots.append(Slot(self._wanted))
        deadline = time.monotonic() + self.wait_s
        while not self._is_placed():
            if self._fits_a_node() and self._evict_another():
                deadline = time.monotonic() + self.wait_s
            elif time.monotonic() > deadline:
                message = self._no_room()
                self.unload()
                raise ExpertError(message)
        with _lock:
            _placed[self] = None

    def _is_placed(self) -> bool:
        """Whether a replica has room, or gets it within EVICT_AFTER_S."""
        for slot in self._slots:
            if slot.replica or slot.is_placed:
                return True
        return bool(self._slots[0].group.wait(min(EVICT_AFTER_S, self.wait_s)))

    def unload(self) -> None:
        """Kill the replicas, which frees what they held."""
        with _lock:
            self._leave()

    def _leave(self) -> None:
        for slot in self._slots:
            remove_placement_group(slot.group)
        self._slots.clear()
        _placed.pop(self, None)

    def _evict_another(self) -> bool:
        """Let the least recently used expert leave that is not answering, if there is one.

        False: no other holds anything, so waiting may not help.
        """
        with _lock:
            others = [expert for expert in _placed if expert is not self]
            for expert in others:
                if not expert._is_answering:
                    expert._leave()
                    break
        return bool(others)

    def _fits_a_node(self) -> bool:
        for node in _nodes():
            if all(node.get(name, 0) >= amount for name, amount in self._wanted.items()):
                return True
        return False

    def _no_room(self) -> str:
        total = "; ".join(_amounts(node, self._wanted) for node in _nodes())
        return (
            f"expert {self.config.name}: the Ray cluster had no room for a replica of"
            f" {_amounts(self._wanted, self._wanted)} within {self.wait_s:g} s. Its nodes have"
            f" {total}; free: {_amounts(ray.available_resources(), self._wanted)}. Lower num_gpus"
            " or num_cpus, add nodes, or raise pool.ray_wait_s"
        )

    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[list[tuple[int, Answer]]]:
        """Answers to rendered prompts as (number, answer) lists, as replicas finish them. What a
        lost replica had in hand goes to another.

        Raises ExpertError: a replica's own, which is not tried again, or when replicas are lost
        over and over.
        """
        self.load()
        with _lock:
            self._is_answering = True
        try:
            yield from self._answer(Inbox.of(prompts))
        finally:
            self._is_answering = False

    def _answer(self, inbox: Inbox) -> Iterator[list[tuple[int, Answer]]]:
        chunks: collections.deque[Rows] = collections.deque()
        idle = [slot for slot in self._slots if slot.replica]
        num_losses = 0
        at_work: dict[Any, tuple[Slot, Rows]] = {}  # by the call that Ray knows
        while inbox or chunks or at_work:
            if inbox and not chunks:
                chunks.extend(self._chunks(inbox.take()))
            if not at_work:  # at first, and where every replica was lost
                self.find_room()
            idle += self._start_placed()
            while chunks and idle:
                slot, rows = idle.pop(), chunks.popleft()
                at_work[slot.ask(rows)] = (slot, rows)
            for call in self._finished(at_work, POLL_S if idle else EVICT_AFTER_S):
                slot, rows = at_work.pop(call)
                answers = self._answers_of(call)
                if isinstance(answers, RayError):
                    chunks.appendleft(rows)
                    num_losses += 1
                    self._replace(slot, num_losses, answers)
                    continue
                idle.append(slot)
                num_losses = 0
                numbers = [number for number, _ in rows]
                yield list(zip(numbers, answers, strict=True))

    @staticmethod
    def _answers_of(call: Any) -> list[Answer] | RayError:
        """The answers of a finished call, or how its process, its node or the way there was lost.

        Raises what the model or its files raised: any replica would raise it.
        """
        try:
            answers: list[Answer] = ray.get(call)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, DERError) else error) from None
        except RayError as error:
            return error
        return answers

    def _chunks(self, rows: Rows) -> Iterator[Rows]:
        """Numbers and prompts that a replica is given at a time: a batch, the longest prompts
        first, and no more than its share.
        """
        ids, _ = self.local.encode([prompt for _, prompt in rows])
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        for chunk in self.local.under_budget(
            ids, order, min(self.local.max_batch_size, math.ceil(len(ids) / self.config.replicas))
        ):
            yield [rows[row] for row in chunk]

    def _start_placed(self) -> list[Slot]:
        """Start a replica wherever Ray has found room since the last look."""
        placed = [slot for slot in self._slots if slot.replica is None and slot.is_placed]
        for slot in placed:
            where = PlacementGroupSchedulingStrategy(slot.group)
            actor = ray.remote(Replica).options(
                num_cpus=self.config.num_cpus,
                num_gpus=self.config.num_gpus,
                scheduling_strategy=where,
            )
            slot.replica = actor.remote(self._unopened, self.identity())
        return placed

    def _finished(self, at_work: dict[Any, tuple[Slot, Any]], timeout_s: float) -> list[Any]:
        """The next call that has ended, if one ends soon."""
        finished, _ = ray.wait(list(at_work), timeout=timeout_s)
        if not finished:
            for slot, _ in at_work.values():
                # Its node was lost while it started; Ray would wait for a new place for ever
                if not slot.is_placed:
                    ray.kill(slot.replica)
        return finished

    def _replace(self, slot: Slot, num_losses: int, error: RayError) -> None:
        """Let a lost replica's place go and ask for another."""
        remove_placement_group(slot.group)
        self._slots.remove(slot)
        self._slots.append(Slot(self._wanted))
        if num_losses > MAX_LOSSES * self.config.replicas:
            raise ExpertError(
                f"expert {self.config.name}: {num_losses} replicas were lost in a row without an"
                f" answer in between. The last: {error}"
            ) from error


def _nodes() -> list[dict[str, float]]:
    """Resources of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _amounts(resources: dict[str, float], names: Any) -> str:
    return " and ".join(f"{resources.get(name, 0):g} {name}" for name in names)
