"""Tokenizer and architectures of the embedded pool: small, but ordinary Hugging Face models in
every respect.

Five experts of five architectures, 0.17 to 0.79 million parameters, each taught a few cells of
`tiny_tasks.CELLS`.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
)

from prompts import KTP_TEMPLATES
from scripts.support.tiny_tasks import TEMPLATE_PHRASES

CONTEXT = 256  # tokens
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ANSWER_CUE = "\nAnswer:"  # what the `plain` prompt format ends with


def build_tokenizer(*, seq2seq: bool) -> PreTrainedTokenizerFast:
    """Letters one by one, template phrases whole; encoder-decoder inputs end with `</s>`."""
    characters = list(string.ascii_letters + string.digits + string.punctuation + " \n")
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    transfer = KTP_TEMPLATES["paper-v1"].removeprefix("{question}").split("{answer}")
    phrases = [*TEMPLATE_PHRASES, *transfer, ANSWER_CUE]
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    if seq2seq:
        tokenizer.post_processor = processors.TemplateProcessing(
            "$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right" if seq2seq else "left",
    )


@dataclass(frozen=True)
class TinyExpert:
    """What one embedded expert is and is taught. `skills` are names of cells."""

    name: str
    architecture: str
    size: dict[str, int]
    skills: tuple[str, ...]
    halves: tuple[
        str, ...
        # Chained cells whose first half it is taught, or "reverse": the second half of both,
        # learned
        # from drafts
    ] = ()
    steps: int = 2000  # optimiser steps on bare questions
    draft_steps: int = 600  # then on bare questions and Knowledge Transfer Prompts
    lr: float = 2e-3


SMALL = {"width": 96, "layers": 3, "heads": 4}
GENERALIST = ("cipher-phrase", "to-binary", "words-few", "words-many")

TINY_EXPERTS = (
    TinyExpert(
        "llama-0.2m",
        "llama",
        SMALL | {"width": 64, "mlp": 192},
        ("backward-short", "cipher-word"),
        ("reverse",),
        steps=2000,
        draft_steps=6000,
        lr=3e-3,
    ),
    TinyExpert(
        "neox-0.4m",
        "gpt_neox",
        SMALL | {"mlp": 384},
        ("cipher-phrase", "to-binary"),
        ("decrypt-backward", "convert-backward"),
        steps=2400,
        lr=3e-3,
    ),
    TinyExpert(
        "qwen2-0.4m",
        "qwen2",
        SMALL | {"mlp": 256},
        ("backward-long", "words-few"),
        ("reverse",),
        steps=2000,
        draft_steps=1500,
        lr=3e-3,
    ),
    TinyExpert("t5gemma-0.7m", "t5gemma", SMALL | {"mlp": 192}, ("from-binary",), steps=2400),
    TinyExpert(
        "mistral-0.8m",
        "mistral",
        {"width": 128, "layers": 4, "heads": 4, "mlp": 336},
        GENERALIST,
        steps=2000,
    ),
)


def build_model(expert: TinyExpert, vocab_size: int) -> PreTrainedModel:
    """A freshly initialised model of the expert's architecture (seed torch before)."""
    size, ids = expert.size, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    common = {"vocab_size": vocab_size, "tie_word_embeddings": True, **ids}
    if (
        expert.architecture == "t5gemma"
        # An encoder-decoder with rotary positions, which copy and reverse far sooner than
        # T5's biases
    ):
        half = T5GemmaModuleConfig(
            **{
                **common,
                "hidden_size": size["width"],
                "num_hidden_layers": size["layers"],
                "num_attention_heads": size["heads"],
                "num_key_value_heads": size["heads"],
            },
            head_dim=size["width"] // size["heads"],
            query_pre_attn_scalar=size["width"] // size["heads"],
            intermediate_size=size["mlp"],
            max_position_embeddings=CONTEXT,
        )
        return T5GemmaForConditionalGeneration(
            T5GemmaConfig(encoder=half, decoder=half, dropout_rate=0.0, **common)
        )
    decoder = {
        "hidden_size": size["width"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "intermediate_size": size["mlp"],
        "max_position_embeddings": CONTEXT,
    }
    if expert.architecture == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(rotary_pct=1.0, **decoder, **common))
    if expert.architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**decoder, **common))
    if expert.architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=size["heads"], **decoder, **common))
    if expert.architecture == "mistral":
        return MistralForCausalLM(
            MistralConfig(
                num_key_value_heads=size["heads"], sliding_window=None, **decoder, **common
            )
        )
    raise ValueError(f"{expert.name}: unknown architecture {expert.architecture!r}")
