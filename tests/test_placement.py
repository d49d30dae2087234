"""Weights in fewer bits, on other devices, and partly on disk: the embedded experts, really loaded
so.
"""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch

from backends.answer_store import answer_key
from backends.hf import HFExpert
from backends.placement import weights_gb
from config import HFExpertConfig
from runtime.errors import ConfigError, ExpertError

CPU = torch.device("cpu")
PROMPTS = [
    f"Spell this word backward (example: sun -> nus): {word}\nAnswer:"
    for word in ("planet", "ocean", "river", "mountain", "tree", "sky")
]


def make(folder, name, **fields):
    return HFExpert(
        HFExpertConfig(
            name=name,
            source=str(folder / name),
            params_b=0.001,
            prompt_format="plain",
            **{"decoding": {"max_new_tokens": 16}, **fields},
        ),
        CPU,
    )


def texts(expert):
    answers = dict(pair for batch in expert.answer(PROMPTS) for pair in batch)
    return [answers[index].text for index in range(len(PROMPTS))]


def test_keys_of_unquantised_experts_are_what_they_always_were_and_quantised_ones_have_their_own(
    tiny_pool_dir,
):
    def key(**fields):
        expert = make(tiny_pool_dir, "llama-0.2m", decoding={}, **fields)
        return answer_key(expert.identity(), "abc", expert.decoding()).hex()

    # Stores written before quantization existed hold answers under it
    assert key() == "5cfb5b93bc39c4f6c00969032046730b"
    # Where weights lie is no part of an answer
    assert key(device_map="auto", max_memory={"cpu": "1GiB"}) == key()
    assert len({key(), key(quantization="8bit"), key(quantization="4bit")}) == 3


def test_the_memory_of_quantised_weights_is_that_of_a_model_with_embeddings_in_16_bits():
    # Llama 3 8B: 128,256 x 4,096 embeddings twice; 32 layers of 2 x 4,096^2 + 2 x 4,096 x 1,024 + 3
    # x 4,096 x 14,336 weights.
    embeddings, layers = (
        2 * 128_256 * 4096,
        32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336),
    )
    # A float32 scale for every 64 weights
    expected = {
        "8bit": 2 * embeddings + layers,
        "4bit": 2 * embeddings + layers * (0.5 + 4 / 64),
    }
    for quantization, num_bytes in expected.items():
        config = HFExpertConfig(
            name="llama",
            source="meta-llama/Meta-Llama-3-8B",
            params_b=8.03,
            dtype="bfloat16",
            quantization=quantization,
        )
        assert weights_gb(config) == pytest.approx(num_bytes / 1e9, rel=0.03)
    assert weights_gb(config.model_copy(update={"quantization": None})) == 16.06


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "bytes_per_weight"), [("8bit", 1), ("4bit", 0.5)])
def test_quantised_weights_answer_from_a_fraction_of_the_memory(
    tiny_pool_dir, quantization, bytes_per_weight
):
    pytest.importorskip(
        "bitsandbytes", reason="quantization needs pip install -r requirements-optional.txt"
    )
    plain, quantised = (
        make(tiny_pool_dir, "llama-0.2m"),
        make(tiny_pool_dir, "llama-0.2m", quantization=quantization),
    )
    expected = texts(plain)
    linear = [
        module.weight
        for name, module in plain.model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    ]
    saved = sum(weight.numel() for weight in linear) * (4 - bytes_per_weight)
    answers = texts(quantised)
    assert (
        plain.model.get_memory_footprint() - quantised.model.get_memory_footprint()
        == pytest.approx(saved, rel=0.05)
    )
    # Of 6; on the CPU this was written on 6 in 8 bits, 5 in 4
    assert sum(a == b for a, b in zip(answers, expected, strict=True)) >= 4


@pytest.mark.slow
def test_a_shape_that_the_backend_cannot_multiply_is_told_when_loading(tiny_pool_dir):
    functional = pytest.importorskip(
        "bitsandbytes.functional",
        reason="quantization needs pip install -r requirements-optional.txt",
    )
    expert = make(tiny_pool_dir, "mistral-0.8m", quantization="4bit")
    if not functional.has_avx512bf16():  # then weights are not packed in blocks of 32, and fit
        expert.load()
        assert expert.model is not None
        return
    with pytest.raises(
        ExpertError,
        match=(
            r"expert mistral-0\.8m: bitsandbytes cannot compute with its 4bit weights on cpu: N"
            r" must be divisible"
        ),
    ):
        expert.load()
    assert expert.model is None


def test_what_is_missing_is_told_before_anything_is_read(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="device cuda:99: not available here"):
        make(tmp_path, "no-such-model", device_map="cuda:99").load()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if not installed
    with pytest.raises(
        ConfigError, match="quantization 4bit needs the package bitsandbytes: pip install"
    ):
        make(tmp_path, "no-such-model", quantization="4bit").load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device_map": "atuo"}, "device_map"),
        ({"max_memory": {0: "20GiB"}}, "max_memory needs a device_map that spreads the weights"),
        (
            {"quantization": "4bit", "gguf_file": "model.gguf"},
            "quantization and gguf_file exclude each other",
        ),
        ({"quantization": "2bit"}, "8bit"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HFExpertConfig(name="x", source="y", params_b=1.0, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-0.2m", "t5gemma-0.7m"])
@pytest.mark.parametrize(
    ("device_map", "share_in_memory"), [("cpu", None), ("auto", None), ("auto", 0.6)]
)
def test_weights_spread_by_accelerate_and_partly_on_disk_answer_the_same_and_are_freed(
    tiny_pool_dir, name, device_map, share_in_memory
):
    plain = make(tiny_pool_dir, name)
    expected = texts(plain)
    room = (
        {
            "max_memory": {
                "cpu": f"{share_in_memory * plain.model.get_memory_footprint() / 1000:.0f}KB"
            }
        }
        if share_in_memory
        else {}
    )
    spread = make(tiny_pool_dir, name, device_map=device_map, **room)
    assert texts(spread) == expected
    places = {parameter.device.type for parameter in spread.model.parameters()}
    # Meta: read from disk whenever needed
    assert places == ({"cpu", "meta"} if share_in_memory else {"cpu"})
    weights = [weakref.ref(parameter) for parameter in spread.model.parameters()]
    spread.unload()
    gc.collect()
    assert not any(reference() is not None for reference in weights)


@pytest.mark.slow
def test_weights_of_which_not_even_the_first_layer_fits_are_refused(tiny_pool_dir):
    expert = make(tiny_pool_dir, "llama-0.2m", device_map="auto", max_memory={"cpu": "1KB"})
    with pytest.raises(ExpertError, match=r"llama-0\.2m: not even its first layer fits the memory"):
        expert.load()
