"""Experts and policies of a user's own, named by import path in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

import train_ppo_multi
from config import ImportedExpertConfig
from evaluation.catalogue import import_baseline
from experts import Request, build_pool
from runtime.command_line import load_config
from runtime.errors import ConfigError, DERError

MODULE = """
from backends.answer_store import Answer
from backends.dispatch import Inbox
from prompts import PromptFormat


class Parrot:
    is_remote = False
    memory_gb = 0.0

    def __init__(self, config, times=1):
        self.config, self.times = config, times

    def identity(self):
        return {"kind": "parrot", "times": self.times}

    def decoding(self):
        return {}

    def render(self, question, previous_answer, ktp, context=()):
        return PromptFormat.of(self.config).render(question, previous_answer, ktp, context=context)

    def load(self): ...

    def unload(self): ...

    def answer(self, prompts):
        inbox = Inbox.of(prompts)
        while inbox:
            for number, prompt in inbox.take():
                yield [(number, Answer(prompt * self.times, 1, 1, 0.0))]


class Mute:
    def __init__(self, config): ...


class NeedsMore:
    def __init__(self, pool, more): ...

    def act(self, episodes): ...


class NoPolicy: ...


NUMBER = 3
"""


@pytest.fixture
def config_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`config_of(kind, more)`: the path of a configuration with one expert of this kind."""
    (tmp_path / "own_module.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def make(kind: str, more: str = "") -> Path:
        path = tmp_path / "own.yaml"
        path.write_text(
            "pool:\n  store: answers.sqlite\n  experts:\n"
            f"    - {{name: own, params_b: 1, kind: '{kind}'{more}}}\n"
        )
        return path

    return make


def test_an_expert_of_ones_own_is_made_with_its_settings_and_options(config_of) -> None:
    more = ", prompt_format: plain, options: {times: 2}"
    config = load_config(config_of("own_module:Parrot", more))
    assert isinstance(config.pool.experts[0], ImportedExpertConfig)
    (answer,) = build_pool(config).answer([Request(0, "Who?")])
    assert answer.text == "Who?\nAnswer:Who?\nAnswer:"  # the plain format, twice


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("no_such_module:Parrot", "", "expert own: kind: no_such_module:Parrot cannot be imported"),
        ("own_module:Macaw", "", "has no attribute 'Macaw'"),
        ("broken_module:Parrot", "", "cannot be imported .ZeroDivisionError"),
        ("own_module:Mute", "", "own_module:Mute lacks config, is_remote, memory_gb, identity"),
        ("own_module:NUMBER", "", "cannot be made with its configuration"),
        ("own_module:Parrot", ", options: {loud: 1}", "unexpected keyword argument 'loud'"),
        ("own module:Parrot", "", "kind = 'own module:Parrot': "),
        ("own_module:", "", "kind = 'own_module:': "),
        ("own_module", "", "unknown kind of expert; known: hf, recorded, endpoint, ray, or the im"),
        ("own_module:Parrot", ", optoins: {}", "optoins: unknown key; did you mean 'options'"),
    ],
)
def test_a_kind_that_cannot_be_used_is_explained(
    config_of, kind: str, more: str, said: str
) -> None:
    path = config_of(kind, more)
    with pytest.raises(ConfigError, match=said):
        build_pool(load_config(path))


def test_a_dry_run_names_a_class_that_is_not_there(config_of, project: Path) -> None:
    path = config_of("own_module:Macaw")
    with pytest.raises(DERError, match="has no attribute 'Macaw'"):
        train_ppo_multi.main(["--config", str(path), "--dry_run"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_module:NoPolicy", "is a type, expected a evaluation.catalogue.Baseline, or a policy"),
        ("own_module:NUMBER", "is a int, expected a evaluation.catalogue.Baseline, or a policy"),
        ("own_module:Nothing", "has no attribute 'Nothing'"),
    ],
)
def test_what_is_no_policy_is_refused(config_of, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        import_baseline(name)


def test_a_policy_that_cannot_be_made_from_the_pool_is_named(config_of) -> None:
    class Ground:
        pool = ()

    with pytest.raises(ConfigError, match=r"NeedsMore\(pool\) fails: TypeError.*'more'"):
        list(import_baseline("own_module:NeedsMore").play(Ground()))
