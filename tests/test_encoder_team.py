"""Training by two processes, on the CPU: the same run as by one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

import train_ppo_multi

pytestmark = pytest.mark.slow


@pytest.fixture
def config_path(project: Path, tmp_path: Path, bert_encoder: Path, tiny_pool_dir: Path) -> Path:
    """A trainable encoder, two updates of three gradient steps each at least."""
    questions = {
        split: {"path": str(project / f"data/tiny_questions/{split}.jsonl"), "limit": 24}
        for split in ("train", "validation", "test")
    }
    expert = {"prompt_format": "plain", "decoding": {"max_new_tokens": 12}}
    settings = {
        "device": "cpu",
        "threads": 1,
        "data": questions,
        "pool": {
            "store": str(tmp_path / "answers.sqlite"),
            "experts": [
                {"name": name, "source": str(tiny_pool_dir / name), "params_b": 0.1, **expert}
                for name in ("llama-0.2m", "neox-0.4m")
            ],
        },
        "env": {"t_max": 2},
        "agent": {"encoder": str(bert_encoder), "freeze_encoder": False, "max_tokens": 64},
        "ppo": {"lr_encoder": 1e-4, "batch_size": 9, "repeats": 2},
        "train": {"epochs": 1, "updates_per_epoch": 2, "episodes_per_update": 16, "num_envs": 8},
        "terminator": {"steps": 5},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "config.yaml"


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "pool/"))}
        for row in rows
    ]


def test_two_processes_train_the_agent_that_one_would(
    config_path: Path,
    project: Path,
    bert_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = train_ppo_multi.main(["--config", str(config_path), "--name", "alone"])
    # What accelerate launch --multi_gpu runs; accelerate launch --cpu starts one process without
    # MPI.
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        free_port(),
    ]
    command = [
        *launch,
        str(project / "train_ppo_multi.py"),
        "--config",
        str(config_path),
        "--name",
        "shared",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = (
        load_file(alone / "agent/model.safetensors"),
        load_file(tmp_path / "runs/shared/agent/model.safetensors"),
    )
    assert one.keys() == two.keys()
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    start = AutoModel.from_pretrained(bert_encoder).state_dict()
    moved = [name for name in start if (start[name] - one[f"encoder.{name}"]).abs().max() > 1e-5]
    assert len(moved) > 20  # the encoder did learn
    for first, second in zip(metrics(alone), metrics(tmp_path / "runs/shared"), strict=True):
        assert second == pytest.approx(first, abs=1e-5)
