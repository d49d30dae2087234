"""Real actors on a real cluster of two nodes, one CPU each, on this machine.

The tests run in order on one cluster, and share the actors: starting one takes about ten seconds.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ray = pytest.importorskip(
    "ray", reason="experts of kind ray need pip install -r requirements-optional.txt"
)
from ray.cluster_utils import Cluster

from backends.answer_store import AnswerStore
from backends.hf import HFExpert
from backends.ray_actors import RayExpert, Replica, connect
from config import Config, HFExpertConfig, PoolConfig, RayExpertConfig
from experts import ExpertPool, Request, build_pool
from runtime.errors import ExpertError

pytestmark = pytest.mark.slow

MEMORY = {"object_store_memory": 80 << 20}
FIELDS = {"params_b": 0.001, "prompt_format": "plain", "decoding": {"max_new_tokens": 40}}


@pytest.fixture(scope="module")
def cluster():
    """A head node, which stays, and `cluster.second`, which a test kills."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A dead node is seen in two seconds
        quick = {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 1000,
            "health_check_failure_threshold": 2,
        }
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "_system_config": quick,
                **MEMORY,
            },
        )
        cluster.second = cluster.add_node(num_cpus=1, **MEMORY)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def make_expert(cluster, folder, *, wait_s=60.0, **fields):
    config = RayExpertConfig(name=folder.name, kind="ray", source=str(folder), **FIELDS, **fields)
    return RayExpert(
        config, PoolConfig(ray_address=cluster.address, ray_wait_s=wait_s, max_batch_size=2)
    )


@pytest.fixture(scope="module")
def twins(cluster, tiny_pool_dir):
    """One expert with two replicas."""
    return make_expert(cluster, tiny_pool_dir / "neox-0.4m", replicas=2)


@pytest.fixture(scope="module")
def newcomer(cluster, tiny_pool_dir, tmp_path_factory):
    """Another expert, whose folder a test may take away."""
    folder = tmp_path_factory.mktemp("models") / "llama-0.2m"
    shutil.copytree(tiny_pool_dir / "llama-0.2m", folder)
    return make_expert(cluster, folder)


@pytest.fixture(scope="module")
def prompts(project):
    """24 prompts: 12 chunks of two."""
    lines = (project / "data/tiny_questions/validation.jsonl").read_text().splitlines()[:24]
    return [json.loads(line)["text"] + "\nAnswer:" for line in lines]


def hf_expert(folder):
    return HFExpert(
        HFExpertConfig(name=folder.name, source=str(folder), **FIELDS), torch.device("cpu")
    )


def hf_answers(folder, prompts):
    """What the hf kind answers in this process."""
    return ordered(hf_expert(folder).answer(prompts), len(prompts))


def ordered(batches, num):
    """Answers in the order of the prompts, each given exactly once, without their times."""
    pairs = [pair for batch in batches for pair in batch]
    assert sorted(index for index, _ in pairs) == list(range(num))
    return [replace(answer, latency_s=0.0) for _, answer in sorted(pairs, key=lambda pair: pair[0])]


def ask_replicas(expert, function):
    """`function(replica)`, run inside every replica."""
    return ray.get(
        [slot.replica.__ray_call__.remote(function) for slot in expert._slots if slot.replica]
    )


def test_replicas_on_two_nodes_share_the_work_and_answer_as_the_hf_kind_does(
    twins, tiny_pool_dir, prompts
):
    folder = tiny_pool_dir / "neox-0.4m"
    assert twins.identity() == hf_expert(folder).identity()
    assert ordered(twins.answer(prompts), len(prompts)) == hf_answers(folder, prompts)
    shares = ask_replicas(twins, lambda replica: replica.expert.work["answers"])
    assert sum(shares) == len(prompts)
    assert min(shares) >= 1
    assert len(set(ask_replicas(twins, lambda _: ray.get_runtime_context().get_node_id()))) == 2


def test_the_projects_modules_travel_to_the_nodes(twins):
    def finds_them_in_rays_own_folders(_):
        return (
            importlib.machinery.PathFinder.find_spec(
                "backends", [path for path in sys.path if "runtime_resources" in path]
            )
            is not None
        )

    assert ask_replicas(twins, finds_them_in_rays_own_folders) == [True, True]


def test_the_ray_and_the_hf_kind_share_a_store(cluster, tiny_pool_dir, tmp_path):
    def pool_of(kind):
        expert = {
            "name": "qwen2-0.4m",
            "kind": kind,
            "source": str(tiny_pool_dir / "qwen2-0.4m"),
            **FIELDS,
        }
        pool = {
            "experts": [expert],
            "store": str(tmp_path / "answers.sqlite"),
            "ray_address": cluster.address,
        }
        return build_pool(Config.model_validate({"pool": pool, "device": "cpu"}))

    requests = [Request(0, "Reverse abc"), Request(0, "Reverse abc", "cb")]
    answers = pool_of("hf").answer(requests)
    remote = pool_of("ray")
    assert remote.answer(requests) == answers
    assert (remote.stats.hits, remote.stats.loads) == (2, 0)


def test_a_node_killed_in_the_middle_loses_nothing_and_only_its_chunk_is_generated_again(
    twins, cluster, tiny_pool_dir, prompts
):
    where = ask_replicas(
        twins,
        lambda replica: (
            ray.get_runtime_context().get_node_id(),
            os.getpid(),
            replica.expert.work["answers"],
        ),
    )
    (doomed,) = [pid for node_id, pid, _ in where if node_id == cluster.second.node_id]
    (before,) = [
        num_answers for node_id, _, num_answers in where if node_id != cluster.second.node_id
    ]
    os.kill(doomed, signal.SIGSTOP)  # so that it surely holds a chunk when its node dies
    batches = twins.answer(prompts)
    first = next(batches)
    cluster.remove_node(cluster.second, allow_graceful=False)
    os.kill(doomed, signal.SIGKILL)
    assert ordered([first, *batches], len(prompts)) == hf_answers(
        tiny_pool_dir / "neox-0.4m", prompts
    )
    assert ask_replicas(twins, lambda replica: replica.expert.work["answers"]) == [
        before + len(prompts)
    ]


def test_a_replica_whose_process_dies_is_started_again(twins, tiny_pool_dir, prompts):
    batches = twins.answer(prompts)
    first = next(batches)
    # One of two: the other waits for a second node
    (pid,) = ask_replicas(twins, lambda _: os.getpid())
    os.kill(pid, signal.SIGKILL)
    assert ordered([first, *batches], len(prompts)) == hf_answers(
        tiny_pool_dir / "neox-0.4m", prompts
    )
    assert ask_replicas(twins, lambda replica: replica.expert.work["answers"]) == [
        len(prompts) - len(first)
    ]


def free_cpus_become(wanted):
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return ray.available_resources().get("CPU", 0) == wanted


def test_an_expert_waits_for_a_busy_one_and_then_takes_its_place_and_an_error_of_its_model_surfaces(
    twins, newcomer, tiny_pool_dir, prompts, monkeypatch
):
    monkeypatch.setattr("backends.ray_actors.EVICT_AFTER_S", 0.5)
    folder = Path(newcomer.config.source)
    newcomer.identity()
    newcomer.local.encode(prompts)  # with its tokenizer this process needs the folder no more
    folder.rename(folder.with_name("gone"))
    busy = twins.answer(prompts)
    first = next(busy)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(list, newcomer.answer(prompts))  # there is one CPU
        time.sleep(2)
        assert not asked.done()
        assert ordered([first, *busy], len(prompts)) == hf_answers(
            tiny_pool_dir / "neox-0.4m", prompts
        )
        with pytest.raises(
            ExpertError,
            match=(
                r"expert llama-0.2m, node [\d.]+: .*llama-0.2m does not exist there. Every node"
                r" needs the model"
            ),
        ):
            asked.result()
    assert twins._slots == []
    folder.with_name("gone").rename(folder)
    # The same actor
    assert ordered(newcomer.answer(prompts), len(prompts)) == hf_answers(folder, prompts)
    assert free_cpus_become(0)


def test_two_experts_that_do_not_fit_together_answer_one_after_the_other(
    cluster, newcomer, tiny_pool_dir, prompts, tmp_path, monkeypatch
):
    monkeypatch.setattr("backends.ray_actors.EVICT_AFTER_S", 0.5)
    experts = [newcomer, make_expert(cluster, tiny_pool_dir / "qwen2-0.4m")]
    pool = ExpertPool(experts, AnswerStore(tmp_path / "answers.sqlite"))  # one CPU is left
    answers = pool.answer(
        [Request(idx, prompt.removesuffix("\nAnswer:")) for prompt in prompts[:4] for idx in (0, 1)]
    )
    assert [answer.text for answer in answers[1::2]] == [
        answer.text for answer in hf_answers(tiny_pool_dir / "qwen2-0.4m", prompts[:4])
    ]
    experts[1].unload()
    assert list(newcomer.answer(prompts[:1]))  # has its place again, for the tests below


def test_a_replica_that_nothing_can_hold_is_refused_and_evicts_nobody(
    cluster, newcomer, tiny_pool_dir, prompts
):
    start = time.monotonic()
    greedy = make_expert(cluster, tiny_pool_dir / "qwen2-0.4m", wait_s=1.0, num_gpus=1)
    with pytest.raises(
        ExpertError,
        match=(
            r"no room for a replica of 1 CPU and 1 GPU within 1 s. Its nodes have 1 CPU and 0 GPU;"
            r" free: 0 CPU and 0 GPU"
        ),
    ):
        greedy.find_room()
    assert time.monotonic() - start < 10
    assert len(ask_replicas(newcomer, lambda _: None)) == 1


def test_replicas_lost_over_and_over_are_an_error(newcomer, prompts, monkeypatch):
    monkeypatch.setattr("backends.ray_actors.MAX_LOSSES", 0)
    batches = newcomer.answer(prompts)
    next(batches)
    (pid,) = ask_replicas(newcomer, lambda _: os.getpid())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        ExpertError, match=r"llama-0.2m: 1 replicas were lost in a row without an answer"
    ):
        list(batches)


def test_unloading_gives_the_resources_back(newcomer):
    newcomer.unload()
    assert free_cpus_become(1)


def test_weights_that_differ_from_the_drivers_are_refused(tiny_pool_dir):
    replica = Replica(
        hf_expert(tiny_pool_dir.absolute() / "llama-0.2m"),
        hf_expert(tiny_pool_dir / "neox-0.4m").identity(),
    )
    with pytest.raises(ExpertError, match=r"llama-0.2m differs from the one on this machine"):
        replica.answer(["abc"])


def test_a_cluster_that_cannot_be_reached_is_an_error(cluster, tiny_pool_dir):
    ray.shutdown()
    with pytest.raises(
        ExpertError, match=r"pool.ray_address 127.0.0.1:1: no Ray cluster can be joined there"
    ):
        connect("127.0.0.1:1")


def test_a_chat_template_is_told_what_the_configuration_says(tiny_pool_dir, tmp_path):
    folder = tmp_path / "chatty"
    shutil.copytree(tiny_pool_dir / "llama-0.2m", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{{ messages[-1]['content'] }} thinking={{ enable_thinking }}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": template})
    )
    config = RayExpertConfig(
        name="e",
        kind="ray",
        source=str(folder),
        **FIELDS | {"prompt_format": "chat"},
        chat_template_kwargs={"enable_thinking": False},
    )
    expert = RayExpert(config, PoolConfig())  # only its actors need a cluster
    assert expert.render("Why?", None, "paper-v1").endswith("Why? thinking=False")
    assert "enable_thinking" in json.dumps(expert.identity())
