"""What the tests of the server share: two loopback experts and a run trained on them, a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import LoopbackExpert, running_experts, train_run


@pytest.fixture(scope="module")
def experts() -> Iterator[dict[str, LoopbackExpert]]:
    yield from running_experts()


@pytest.fixture(scope="module")
def run(
    experts: dict[str, LoopbackExpert],
    bert_encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return train_run(tmp_path_factory.mktemp("served"), bert_encoder, experts)
