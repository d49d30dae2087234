"""Fixtures shared by all tests: scripted experts, the embedded pool, and small encoders with real
tokenizers.

No network, no GPU.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Matrices are small here, and threads cost more than they bring; for the commands started, too
os.environ["OMP_NUM_THREADS"] = "1"

import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from no_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401
from scripted import AnswerFunction, ScriptedExpert
from toy_runs import config_path, finished_run, results, workplace  # noqa: F401 (fixtures)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from backends.answer_store import AnswerStore
from experts import ExpertPool

torch.set_num_threads(1)

# Tests that need one of these are slow: it trains a run, starts a server, or loads a real LLM.
SLOW_FIXTURES = {"cluster", "evaluated", "finished_run", "place", "run", "server", "smollm2"}

TINY_EXPERTS = ("llama-0.2m", "neox-0.4m", "qwen2-0.4m", "t5gemma-0.7m", "mistral-0.8m")
WORDS = (
    "what",
    "is",
    "the",
    "sum",
    "of",
    "capital",
    "france",
    "paris",
    "spell",
    "backward",
    "answer",
    "yes",
    "no",
    "and",
    "question",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a slow fixture, and skip what needs a GPU where there is none."""
    no_gpu = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def scripted_expert() -> Callable[..., ScriptedExpert]:
    """`scripted_expert(function, name, ...)`: an expert that answers what `function(question,
    previous_answer)` says.
    """
    return ScriptedExpert


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., ExpertPool]]:
    """`make_pool(experts, **ExpertPool options)`: functions become experts e0, e1, ... of 1, 2, ...
    billion parameters.

    The store is `tmp_path / "answers.sqlite"`, so two pools of one test share it unless `store=`
    names another.
    """
    stores = []

    def make(
        experts: Sequence[ScriptedExpert | AnswerFunction],
        *,
        store: AnswerStore | None = None,
        **options: Any,
    ) -> ExpertPool:
        made = [
            (
                e
                if isinstance(e, ScriptedExpert)
                else ScriptedExpert(e, f"e{idx}", params_b=float(idx + 1))
            )
            for idx, e in enumerate(experts)
        ]
        # An empty store is falsy
        stores.append(AnswerStore(tmp_path / "answers.sqlite") if store is None else store)
        return ExpertPool(made, stores[-1], **options)

    yield make
    for store in stores:
        store.close()


@pytest.fixture(scope="session")
def tiny_pool_dir(project: Path) -> Path:
    """The embedded pool: real Hugging Face models of five architectures."""
    folder = project / "data" / "tiny_pool"
    if missing := [
        name for name in TINY_EXPERTS if not (folder / name / "model.safetensors").is_file()
    ]:
        pytest.skip(
            f"data/tiny_pool has no {', '.join(missing)}: run python scripts/build_tiny_pool.py"
            " --train"
        )
    return folder


def _save(folder: Path, model_class: Any, config: Any, tokenizer: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer BERT of width 32: WordPiece, [PAD] 0, segments, 512 positions."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *characters,
        *(f"##{c}" for c in string.ascii_lowercase + string.digits),
    ]
    tokenizer = BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, model_max_length=512
    )
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return _save(tmp_path_factory.mktemp("bert"), BertModel, config, tokenizer)


@pytest.fixture(scope="session")
def roberta_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer RoBERTa of width 32: byte-level BPE, `<pad>` 1, no segments, 512
    positions after the offset.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [("i", "s"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "f"), ("Ġ", "of")]
    tokens = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *sorted(ByteLevel.alphabet()),
        *("".join(pair) for pair in merges),
        "<mask>",
    ]
    tokenizer = RobertaTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=512,
    )
    config = RobertaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
    )
    return _save(tmp_path_factory.mktemp("roberta"), RobertaModel, config, tokenizer)


@pytest.fixture(scope="session")
def ranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random PairRM of two layers, its tokenizer numbered as DeBERTa-v3's is: special tokens,
    pieces, [MASK], then the marks.
    """
    from transformers import DebertaV2Config, DebertaV2Tokenizer

    from evaluation.pair_ranker import PairRM

    words = ("▁what", "▁is", "▁red", "▁blue", "▁green", "▁sky", "▁", *string.ascii_lowercase)
    pieces = [(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")] + [
        (word, -1.0) for word in words
    ]
    tokenizer = DebertaV2Tokenizer(vocab=pieces, unk_id=3)
    tokenizer.add_tokens(["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"])
    source, first, second = tokenizer.convert_tokens_to_ids(
        ["<|source|>", "<|candidate1|>", "<|candidate2|>"]
    )
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,  # large, so that answers differ
        # as in PairRM-hf's config.json
        relative_attention=True,
        position_buckets=8,
        max_relative_positions=-1,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        pad_token_id=0,
        n_tasks=1,
        drop_out=0.05,
        source_prefix_id=source,
        cand1_prefix_id=first,
        cand2_prefix_id=second,
    )
    return _save(tmp_path_factory.mktemp("pairrm"), PairRM, config, tokenizer)
