"""Hand damaged files to everything that reads files, and see that each is read or refused in words.

    python scripts/fuzz.py  # 2,000 mutations, about two minutes on one core
    python scripts/fuzz.py --mutations 20000 --seed 7  # a night's work
    python scripts/fuzz.py --only stores:17  # one mutation again, with its traceback

Each mutation is drawn from the seed, its kind and its number alone. A fault is an exception that is
no DERError: a traceback, in a user's eyes. A hang takes longer than ten seconds. The exit status is
1 where there is one of either. Nothing asks an LLM: the experts are recorded answers. Nothing is
written outside a temporary folder, whatever path a damaged setting names.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.command_line import count, dump_config, load_config, run_command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--mutations", type=count, default=2000, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="this one, with its traceback")
    return parser


if __name__ == "__main__":  # --help and mistakes, before the imports that take seconds
    run_command(make_parser().parse_args)

import torch
import yaml

import test_ppo_multi
import train_ppo_multi
from agent import load_agent
from backends.answer_store import Answer, AnswerStore, StoredAnswer, answer_key, rebuild
from backends.recorded import read_recording
from config import DataConfig, SourceConfig
from dry_run.plan import make_plan
from experts import Request, build_pool
from metrics.registry import check_metrics
from questions import load_splits
from runtime.errors import DERError
from runtime.files import read_json
from runtime.run_folder import evaluated_config, num_epochs
from scripts.support.confined import confined
from scripts.support.mutations import mutate_file
from scripts.support.tiny_models import TinyExpert, build_model, build_tokenizer
from terminator import load_terminator, make_judge
from training.loop import resumed_run

HANG_S = 10
FAULTS_SHOWN = 20
MODEL_FILES = (
    "agent/config.json",
    "agent/model.safetensors",
    "terminator/config.json",
    "terminator/model.safetensors",
)
RUN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "expert_calls.json",
    "environment.json",
    "checkpoints/last.pt",
    "checkpoints/best.pt",
    "checkpoints/last.json",
    *MODEL_FILES,
)
SPLITS = {"train": 12, "validation": 4, "test": 4}


class Hang(BaseException):
    """A mutation that took too long. No error, so that nothing on the way takes it for one."""


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Workshop:
    """Good files of every kind, made once, and what reads each kind."""

    def __init__(self, folder: Path):
        self.folder, self.case = folder, folder / "case"
        self.damages = True
        self.kinds: dict[str, tuple[float, Callable[[random.Random], None]]] = {
            "yaml": (0.25, self.read_yaml),
            "questions": (0.2, self.read_questions),
            "recorded": (0.15, self.read_recorded),
            "runs": (0.12, self.read_run),
            "stores": (0.1, self.read_store),
            "models": (0.08, self.read_model),
            "routes": (0.1, self.read_routes),
        }
        os.chdir(folder)
        self._make_files()
        for name, reads in (("good", "text"), ("belief", "belief")):
            arguments = ["--config", "good.yaml", "--name", name, "--agent.reads", reads]
            train_ppo_multi.main([*arguments, "--env.ktp", "paper-v1"])  # one pool serves both
        test_ppo_multi.main(["--run", "runs/good"])
        gc.collect()  # a run is locked while its trainer lives
        self.pool = build_pool(load_config(Path("runs/good/config.yaml")))

    def _make_files(self) -> None:
        self._make_questions()
        self._make_encoder()
        Path("good.yaml").write_text(yaml.safe_dump(self._settings()))
        store = AnswerStore("good.sqlite")
        store.put_many([self._stored(number) for number in range(300)])
        store.close()

    def _make_questions(self) -> None:
        rng = random.Random(0)
        recorded = []
        for split, num_rows in SPLITS.items():
            rows = [self._row(split, number, rng) for number in range(num_rows)]
            write_lines(Path(f"{split}.jsonl"), rows)
            recorded += rows
        write_lines(Path("recorded.jsonl"), recorded)
        questions = []
        for n, metric in enumerate(("exact_match", "numeric_match", "short_answer")):
            question = {"id": f"q{n}", "text": f"{n} + {n}?", "reference": str(2 * n)}
            questions.append({**question, "metric": metric})
        write_lines(Path("questions.jsonl"), questions)

    def _make_encoder(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tokenizer = build_tokenizer(seq2seq=False)
            shape = {"width": 16, "layers": 1, "heads": 2, "mlp": 32}
            model = build_model(TinyExpert("encoder", "llama", shape, ()), len(tokenizer))
        model.save_pretrained("encoder")
        tokenizer.save_pretrained("encoder")

    def _row(self, split: str, number: int, rng: random.Random) -> dict[str, object]:
        right = rng.randrange(2)
        return {
            "question": f"what is {split} {number}",
            "reference": "yes",
            "answers": {"a": "yes" if right else "no", "b": "no" if right else "yes"},
            "scores": {"a": float(right), "b": 1.0 - right},
            "meta": {
                "split": split,
                "task": "t",
                "tokens": {"a": 3, "b": 4},
                "id": f"{split}{number}",
            },
        }

    def _settings(self) -> dict[str, object]:
        recorded = {"kind": "recorded", "path": "recorded.jsonl"}
        experts = [
            {"name": "a", "params_b": 1.0} | recorded,
            {"name": "b", "params_b": 2.0} | recorded,
        ]
        data = {}
        for split in SPLITS:
            data[split] = {"path": "recorded.jsonl", "split": split, "metric": "recorded"}
        return {
            "device": "cpu",
            "threads": 1,
            "data": data,
            "pool": {"experts": experts, "store": "runs/answers.sqlite"},
            "env": {"t_max": 2},
            "agent": {"encoder": "encoder", "max_tokens": 32, "hidden_sizes": [8]},
            "ppo": {"batch_size": 8, "repeats": 1},
            "train": {"epochs": 1, "updates_per_epoch": 1, "episodes_per_update": 8, "num_envs": 4},
            "terminator": {"steps": 5, "hidden_size": 4},
        }

    def _stored(self, number: int) -> StoredAnswer:
        key = answer_key({"expert": "a"}, f"question {number}", {})
        return StoredAnswer(key, "a", f"question {number}", Answer("yes " * 20, 3, 20, 0.1))

    def damage(self, path: Path, rng: random.Random) -> None:
        """Damage a file, unless it is the good ones' turn."""
        if self.damages:
            mutate_file(path, rng)

    def check_good_files(self) -> None:
        """Raise where a good file is not read: then a refusal of a damaged one means nothing."""
        self.damages = False
        for kind, (_, read) in self.kinds.items():
            for number in range(10):
                shutil.rmtree(self.case, ignore_errors=True)
                self.case.mkdir()
                with quiet(), confined(self.folder):
                    read(random.Random(f"{kind}:{number}"))
        self.damages = True

    # --- what reads a kind of file ---

    def read_yaml(self, rng: random.Random) -> None:
        path = self.case / "config.yaml"
        shutil.copyfile("good.yaml", path)
        if rng.random() < 0.5:
            shutil.copyfile("runs/good/config.yaml", path)
        self.damage(path, rng)
        config = load_config(path)
        path.write_text(dump_config(config), encoding="utf-8")
        load_config(path)
        make_plan(config)

    def read_questions(self, rng: random.Random) -> None:
        path = self.case / "questions.jsonl"
        shutil.copyfile(rng.choice(("questions.jsonl", "train.jsonl")), path)
        self.damage(path, rng)
        sources = {name: SourceConfig(path=f"{name}.jsonl", split=name) for name in SPLITS}
        sources["train"] = SourceConfig(path=str(path))
        splits = load_splits(DataConfig(**sources))
        check_metrics(splits.train, [expert.config for expert in self.pool.experts])

    def read_recorded(self, rng: random.Random) -> None:
        path = self.case / "recorded.jsonl"
        shutil.copyfile("recorded.jsonl", path)
        self.damage(path, rng)
        settings = self._settings()
        text = json.dumps(settings).replace("recorded.jsonl", str(path))
        (self.case / "config.yaml").write_text(text)
        config = load_config(
            self.case / "config.yaml", ["--pool.store", str(self.case / "store.sqlite")]
        )
        read_recording(str(path))
        pool = build_pool(config)
        questions = load_splits(config.data).train
        pool.check_questions(questions)
        pool.answer([Request(0, question.text) for question in questions])
        pool.store.close()

    def read_run(self, rng: random.Random) -> None:
        run = self.case / "run"
        beside = shutil.ignore_patterns("tb", "report", "routes.jsonl", ".lock")
        shutil.copytree(f"runs/{rng.choice(('good', 'belief'))}", run, ignore=beside)
        (run / "expert_calls.json").write_text('{"generated": 7}')
        self.damage(run / rng.choice(RUN_FILES), rng)
        num_epochs(run)
        evaluated_config(run, [])
        resumed_run(run, []).folder.close()

    def read_store(self, rng: random.Random) -> None:
        path = self.case / "store.sqlite"
        shutil.copyfile("good.sqlite", path)
        self.damage(path, rng)
        keys = [self._stored(number).key for number in range(300)]
        try:
            store = AnswerStore(path)
            store.check_small()
            store.get_many(keys)
            store.counts()
            AnswerStore(self.case / "other.sqlite").merge(path)
        except DERError:
            if path.is_file():
                rebuild(path)
                AnswerStore(path).check()

    def read_model(self, rng: random.Random) -> None:
        run, kind = self.case / "run", rng.choice(("good", "belief"))
        for name in ("agent", "terminator"):
            shutil.copytree(f"runs/{kind}/{name}", run / name)
        changed = run / rng.choice(MODEL_FILES)
        self.damage(changed, rng)
        if changed.suffix == ".safetensors" and rng.random() < 0.5:  # as if never hashed
            spec = read_json(changed.with_name("config.json"), DERError)
            del spec["sha256"]
            changed.with_name("config.json").write_text(json.dumps(spec))
        agent = load_agent(run / "agent", self.pool)
        make_judge(agent, load_terminator(run / "terminator", torch.device("cpu")))

    def read_routes(self, rng: random.Random) -> None:
        out = self.case / "out"
        (out / "report").mkdir(parents=True)
        for name in ("routes.jsonl", "report/results.json"):
            shutil.copyfile(Path("runs/good") / name, out / name)
        self.damage(out / rng.choice(("routes.jsonl",) * 3 + ("report/results.json",)), rng)
        test_ppo_multi.repriced(out, rng.choice(("params", "flops", "tokens")), [])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raises Hang after `HANG_S` seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_one(workshop: Workshop, kind: str, number: int, seed: int) -> str:
    """What came of a mutation: read, refused, hang, or the traceback of a fault."""
    shutil.rmtree(workshop.case, ignore_errors=True)
    workshop.case.mkdir()
    read = workshop.kinds[kind][1]
    try:
        with time_limit(), quiet(), confined(workshop.case.parent):
            read(random.Random(f"{seed}:{kind}:{number}"))
    except (DERError, MemoryError):
        return "refused"
    except OSError as error:  # a command says it in a line, too, if it names the file
        return "refused" if error.filename is not None else traceback.format_exc()
    except Hang:
        return "hang"
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit, too: a data file must not end the process
        return traceback.format_exc()
    return "read"


def fuzz(workshop: Workshop, mutations: int, seed: int) -> bool:
    """Try all kinds, print a line for each, and every fault. Whether there was none."""
    bad: list[str] = []
    for kind, (share, _) in workshop.kinds.items():
        began, counts = time.perf_counter(), Counter[str]()
        for number in range(max(1, round(share * mutations))):
            outcome = try_one(workshop, kind, number, seed)
            if outcome not in ("read", "refused"):
                last_line = outcome.strip().splitlines()[-1]
                bad.append(f"{kind}:{number} {last_line[:200]}")
            counts[outcome if outcome in ("read", "refused", "hang") else "fault"] += 1
        print(
            f"{kind:10} {counts.total():6} mutations: {counts['read']} read, {counts['refused']}"
            f" refused, {counts['fault']} faults, {counts['hang']} hangs,"
            f" {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    for line in bad[:FAULTS_SHOWN]:
        print(f"  {line}; again: python scripts/fuzz.py --seed {seed} --only {line.split()[0]}")
    return not bad


def main(arguments: list[str]) -> None:
    options = make_parser().parse_args(arguments)
    logging.disable(logging.CRITICAL)
    here = Path.cwd()
    try:
        with tempfile.TemporaryDirectory(prefix="der-fuzz-") as folder:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                workshop = Workshop(Path(folder))
            workshop.check_good_files()
            if options.only:
                kind, _, number = options.only.partition(":")
                print(try_one(workshop, kind, int(number), options.seed))
                return
            is_clean = fuzz(workshop, options.mutations, options.seed)
    finally:
        os.chdir(here)
        logging.disable(logging.NOTSET)
    if not is_clean:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
