"""A small run to test on: three random Llama-shaped experts, questions that one of them answers
right, and a folder to run commands in.

What makes that learnable: the reference of a question is what the expert of its family happens to
answer.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import test_ppo_multi
import train_ppo_multi
from experts import Request, build_pool
from metrics.base import normalise
from report.schema import read_results
from runtime.command_line import load_config
from scripts.support.tiny_models import TinyExpert, build_model, build_tokenizer

FAMILIES = ("spell", "sum of", "capital of")  # family f is answered right by expert f alone
NAMES = ("r0", "r1", "r2")
EPOCHS, UPDATES, NUM_TEST = 4, 2, 12
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "env": {"t_max": 2},
    "reward": {"alpha": 0.01},
    "agent": {"max_tokens": 48, "hidden_sizes": [16]},
    "ppo": {"batch_size": 16, "repeats": 4, "lr": 0.01},
    "train": {
        "epochs": EPOCHS,
        "updates_per_epoch": UPDATES,
        "episodes_per_update": 12,
        "num_envs": 4,
    },
    "terminator": {"steps": 30, "hidden_size": 8},
    "eval": {"tree_questions": 16},
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def build_random_expert(folder: Path, seed: int) -> Path:
    """A random model whose answers depend on every token: large weights, so that greedy decoding is
    far from constant.
    """
    tokenizer = build_tokenizer(seq2seq=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(
            TinyExpert(folder.name, "llama", {"width": 16, "layers": 1, "heads": 2, "mlp": 32}, ()),
            len(tokenizer),
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def config_path(tmp_path_factory: pytest.TempPathFactory, bert_encoder: Path) -> Path:
    """A configuration with three random experts, the random BERT and 24 + 18 + 12 questions."""
    root = tmp_path_factory.mktemp("workshop")
    experts = [
        {
            "name": name,
            "source": str(build_random_expert(root / name, seed)),
            "params_b": seed + 1.0,
            "prompt_format": "plain",
            "decoding": {"max_new_tokens": 4},
        }
        for seed, name in enumerate(NAMES)
    ]
    settings = SETTINGS | {
        "agent": SETTINGS["agent"] | {"encoder": str(bert_encoder)},
        "pool": {"experts": experts, "store": str(root / "answers.sqlite")},
    }
    pool = build_pool(load_config(dump_yaml(root / "pool.yaml", settings)))
    rows: list[dict[str, Any]] = []
    for family, wording in enumerate(FAMILIES):
        texts = [f"{wording} {a}{b}" for a in "abcdefgh" for b in "uvwxyz"]
        answers = [
            [normalise(a.text) for a in pool.answer([Request(e, text) for text in texts])]
            for e in range(3)
        ]
        usable = [
            i
            for i in range(len(texts))
            if answers[family][i]
            and all(answers[e][i] != answers[family][i] for e in range(3) if e != family)
        ]
        rows += [
            {
                "id": f"{family}-{i}",
                "text": texts[i],
                "reference": answers[family][i],
                "task": wording,
            }
            for i in usable[:18]
        ]
    by_family = [rows[start : start + 18] for start in (0, 18, 36)]
    parts = {"train": (0, 8), "validation": (8, 14), "test": (14, 18)}
    data = {
        name: {
            "path": write_jsonl(
                root / f"{name}.jsonl", [row for part in by_family for row in part[lo:hi]]
            )
        }
        for name, (lo, hi) in parts.items()
    }
    return dump_yaml(root / "toy.yaml", settings | {"data": data})


def dump_yaml(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


@dataclass(frozen=True)
class Workplace:
    """A folder to run commands in, with a store of its own."""

    folder: Path
    config_path: Path

    @property
    def store(self) -> Path:
        return self.folder / "answers.sqlite"

    def arguments(self, name: str, *more: str) -> list[str]:
        return [
            "--config",
            str(self.config_path),
            "--name",
            name,
            "--pool.store",
            str(self.store),
            *more,
        ]

    def train(self, name: str, *more: str) -> Path:
        return self._main(self.arguments(name, *more))

    def resume(self, run: Path, *more: str) -> Path:
        return self._main(["--resume", str(run), *more])

    def fails(self, error: type[BaseException], *arguments: str) -> str:
        """The message that training ends with."""
        try:
            train_ppo_multi.main(list(arguments))
        except error as raised:
            message = str(raised)
        else:
            pytest.fail(f"no {error.__name__}")
        gc.collect()
        return message

    def _main(self, arguments: list[str]) -> Path:
        run = train_ppo_multi.main(arguments)
        gc.collect()  # a run is locked while its trainer lives
        return (self.folder / run).resolve()


@pytest.fixture
def workplace(tmp_path: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, config_path)


@pytest.fixture(scope="session")
def finished_run(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An undisturbed run, in its own working directory. Tests only read it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Workplace(folder, config_path).train("toy")


@pytest.fixture(scope="session")
def results(finished_run: Path) -> dict[str, Any]:
    return read_results(test_ppo_multi.main(["--run", str(finished_run)]))  # checks every field


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def repeatable(run: Path) -> list[dict[str, Any]]:
    """What two runs of one seed agree in: all but wall times and store hits."""
    return [
        {k: v for k, v in record.items() if not k.startswith(("time/", "pool/"))}
        for record in read_metrics(run)
    ]


def learned(run: Path) -> dict[str, list[float]]:
    files = (run / "agent" / "model.safetensors", run / "terminator" / "model.safetensors")
    return {
        f"{path.parent.name}.{name}": tensor.flatten().tolist()
        for path in files
        for name, tensor in load_file(path).items()
    }
