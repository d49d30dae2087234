"""Expert kind `hf`: a Hugging Face causal or sequence-to-sequence model run in this process."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from backends.answer_store import Answer
from backends.dispatch import Inbox
from backends.generation import Row, RunningBatch, SeededSampling, keeps_only_keys_and_values
from backends.model_source import hide_loading_bars, resolve_source, weights_fingerprint
from backends.placement import check_placement, loading_options, weight_problems, weights_gb
from config import HFExpertConfig
from prompts import KTP_TEMPLATES, Message, PromptFormat, before_stop, cut_middle
from runtime.errors import ExpertError, PromptError

# Prompts of unequal length are read apart where this saves so many tokens of padding
SPARED_TOKENS = 256
MIN_PREFIX = 32  # tokens; reusing the keys and values of a shorter prefix gains nothing


class HFExpert:
    """One local model. Cheap to create: tokenizer and weights are loaded when first needed."""

    is_remote = False

    def __init__(
        self,
        config: HFExpertConfig,
        device: torch.device,
        *,
        max_batch_tokens: int = 16384,
        max_batch_size: int = 128,
    ):
        self.config, self.device = config, device
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_size = max_batch_size
        self.source = resolve_source(config.source)
        self.prompt_format = PromptFormat.of(config)
        self.model: Any = None
        self._prefix_caches: dict[tuple[int, ...], Any] = {}
        self.work: Counter[str] = Counter()  # answers, and what RunningBatch counts

    def identity(self) -> dict[str, Any]:
        """What makes this expert's answers its own: weights, precision, prompt format."""
        if Path(self.source).is_dir():
            weights = weights_fingerprint(self.source)
        else:
            weights = f"{self.source}@{self.config.revision or self._hub_commit()}"
        identity = {
            "kind": "hf",
            "weights": weights,
            "gguf": self.config.gguf_file,
            "dtype": self.config.dtype,
            "format": self.prompt_format.identity(),
            "stop": list(self.config.stop),
        }
        if self.config.quantization:
            identity["quantization"] = self.config.quantization
        return identity

    def decoding(self) -> dict[str, Any]:
        return self.config.decoding.model_dump()

    @functools.cached_property
    def tokenizer(self) -> Any:
        tokenizer = self._from_pretrained(AutoTokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right" if self.model_config.is_encoder_decoder else "left"
        return tokenizer

    @functools.cached_property
    def model_config(self) -> Any:
        return self._from_pretrained(AutoConfig)

    def _hub_commit(self) -> str:
        return getattr(self.model_config, "_commit_hash", None) or "unpinned"

    def _from_pretrained(self, auto_class: Any, **kwargs: Any) -> Any:
        if self.config.gguf_file:
            kwargs["gguf_file"] = self.config.gguf_file
        try:
            return auto_class.from_pretrained(
                self.source,
                revision=self.config.revision or "main",
                trust_remote_code=self.config.trust_remote_code,
                **kwargs,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            hint = (
                "the folder exists, so a file in it is missing or broken"
                if Path(self.source).is_dir()
                else "there is no such folder, and the hub has no such model or cannot be reached"
            )
            raise ExpertError(
                f"expert {self.config.name}: cannot load {self.config.source!r}: {hint}.\n   "
                f" {str(error).splitlines()[0]}"
            ) from error

    def render(
        self,
        question: str,
        previous_answer: str | None,
        ktp: str,
        context: Sequence[Message] = (),
    ) -> str:
        """The prompt text as this expert wants it."""
        template = (
            self.tokenizer.apply_chat_template
            if self.config.prompt_format == "chat" and self.tokenizer.chat_template
            else None
        )
        try:
            return self.prompt_format.render(question, previous_answer, ktp, template, context)
        except PromptError as error:
            raise PromptError(f"expert {self.config.name}: {error}") from error

    @property
    def memory_gb(self) -> float:
        """Estimated memory of the loaded weights."""
        return weights_gb(self.config)

    def load(self) -> None:
        """Load the weights. Raises ConfigError and ExpertError."""
        if self.model is not None:
            return
        check_placement(self.config)
        auto_class = (
            AutoModelForSeq2SeqLM if self.model_config.is_encoder_decoder else AutoModelForCausalLM
        )
        hide_loading_bars()
        options = loading_options(self.config, self.device)
        model, report = self._from_pretrained(auto_class, output_loading_info=True, **options)
        self._refuse_bad_weights(model, report)
        self.model = (model if options["device_map"] else model.to(self.device)).eval()
        if not self.config.trust_remote_code:
            # A decode chunk goes on from the cache of the last one. A hub's own code runs to the
            # end in one call, so its settings stay.
            self.model.generation_config.update(use_cache=True, cache_implementation=None)
        if self.model.device.type == "meta":
            self.unload()
            raise ExpertError(
                f"expert {self.config.name}: not even its first layer fits the memory that"
                " device_map and max_memory leave it; raise max_memory"
            )
        if self.config.quantization:
            self._try_quantized()

    def _refuse_bad_weights(self, model: Any, report: dict[str, Any]) -> None:
        """Raises ExpertError where weights are missing, of another shape, or not numbers."""
        is_quantized = self.config.quantization is not None
        for what, names in weight_problems(model, report, is_quantized=is_quantized).items():
            if names:
                raise ExpertError(
                    f"expert {self.config.name}: {self.source}: {len(names)} weights are {what},"
                    f" first {names[0]}. The model folder is incomplete or damaged: fetch it again"
                )

    def _try_quantized(self) -> None:
        """Read one token: not every backend of bitsandbytes can multiply weights of every shape."""
        try:
            self.model.generate(
                input_ids=torch.tensor([[self.tokenizer.pad_token_id]], device=self.model.device),
                max_new_tokens=1,
            )
        except (AssertionError, RuntimeError) as error:
            self.unload()
            raise ExpertError(
                f"expert {self.config.name}: bitsandbytes cannot compute with its"
                f" {self.config.quantization} weights on {self.device}: {error}. Try the other"
                " width or none"
            ) from error

    def unload(self) -> None:
        """Free the weights' memory."""
        self.model = None
        self._prefix_caches.clear()
        gc.collect()
        if torch.cuda.is_available():  # device_map may have used GPUs other than the run's device
            torch.cuda.empty_cache()

    @property
    def context(self) -> int | None:
        """Tokens that fit, prompt and answer together; None where there is no fixed limit.

        For encoder-decoders it is the limit of the prompt alone.
        """
        text_config = self.model_config.get_text_config()
        for name in ("max_position_embeddings", "n_positions"):
            limit = getattr(text_config, name, None)
            if limit:
                return limit
        if self.tokenizer.model_max_length > 10**6:  # transformers' way to say "not known"
            return None
        return self.tokenizer.model_max_length

    def encode(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each prompt, and whether it was cut.

        A prompt too long for the context loses its middle. Raises ExpertError where the context
        has no room for a prompt.
        """
        ids = self.tokenizer(list(prompts), add_special_tokens=self.config.prompt_format != "chat")[
            "input_ids"
        ]
        if self.context is None:
            return ids, [False] * len(ids)
        room = self.context
        if not self.model_config.is_encoder_decoder:
            room -= self.config.decoding.max_new_tokens
        if room < 2:
            raise ExpertError(
                f"expert {self.config.name}: max_new_tokens {self.config.decoding.max_new_tokens}"
                f" leaves no room in its context of {self.context} tokens"
            )
        was_cut = [len(row) > room for row in ids]
        return [cut_middle(row, room) for row in ids], was_cut

    @functools.cached_property
    def _prefixes(self) -> list[tuple[int, ...]]:
        """Token ids that many prompts begin with, the longest first.

        All first calls share one, and so do all calls with one Knowledge Transfer Prompt: worked
        examples, a system prompt.
        """
        if self.model_config.is_encoder_decoder:
            return []
        prefixes = {self._shared_prefix(None, "paper-v1")}
        for ktp in KTP_TEMPLATES:
            prefixes.add(self._shared_prefix("1", ktp))
        long_enough = [prefix for prefix in prefixes if len(prefix) >= MIN_PREFIX]
        return sorted(long_enough, key=len, reverse=True)

    def _shared_prefix(self, previous_answer: str | None, ktp: str) -> tuple[int, ...]:
        """The tokens that the prompts of two unlike questions both begin with."""
        questions = ("What?", "7 + 1")
        ids, _ = self.encode([self.render(text, previous_answer, ktp) for text in questions])
        prefix = []
        for token, other_token in zip(*ids, strict=False):
            if token != other_token:
                break
            prefix.append(token)
        return tuple(prefix)

    @functools.cached_property
    def _reuses_prefixes(self) -> bool:
        """Whether padding between prefix and question changes nothing.

        A recurrent model would read the padding. A model that is not told positions would count it.
        """
        if self.config.trust_remote_code or not keeps_only_keys_and_values(self.model):
            return False
        return "position_ids" in inspect.signature(self.model.forward).parameters

    @property
    def _window(self) -> float:
        """Tokens that attention reaches back, or that it takes at a time."""
        text_config = self.model_config.get_text_config()
        window = math.inf
        for name in ("sliding_window", "window_size", "attention_chunk_size"):
            window = min(window, getattr(text_config, name, None) or math.inf)
        return window

    def _prefix_of(self, ids: list[int]) -> tuple[int, ...]:
        """The prefix whose keys and values a prompt reuses; empty where there is none.

        In a batch the padding then stands between prefix and question. It would take up a part of
        an attention window.
        """
        if not self._reuses_prefixes:
            return ()
        if len(ids) + self.config.decoding.max_new_tokens > self._window:
            return ()
        for prefix in self._prefixes:
            if len(ids) > len(prefix) and tuple(ids[: len(prefix)]) == prefix:
                return prefix
        return ()

    def under_budget(
        self, ids: list[list[int]], order: list[int], max_size: int
    ) -> Iterator[list[int]]:
        """Row numbers in batches under the token budget; `order` is by falling length."""
        while order:
            size = self._num_fitting(len(ids[order[0]]), max_size)
            yield order[:size]
            order = order[size:]

    def _num_fitting(self, longest: int, max_size: int) -> int:
        """How many rows may be in a batch whose longest prompt has `longest` tokens."""
        row_tokens = longest + self.config.decoding.max_new_tokens
        return max(1, min(max_size, self.max_batch_tokens // row_tokens))

    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[list[tuple[int, Answer]]]:
        """Answers to rendered prompts as (request id, answer) lists, one for each decode chunk.

        Lists may be empty. Loads the model if needed. Longer prompts go first, so that an
        out-of-memory error shows at once. On such an error of CUDA everything under way starts
        again in batches of half the size.
        """
        self.load()
        inbox = Inbox.of(prompts)
        waiting: list[Row] = []
        batch = self._new_batch()
        max_size = self.max_batch_size
        while inbox or waiting or batch.rows:
            if inbox:
                waiting = sorted(waiting + self._rows(inbox), key=lambda row: -len(row.ids))
            joining = waiting[: self._num_joining(batch, waiting, max_size)]
            waiting = waiting[len(joining) :]
            together = batch.rows + joining
            is_out_of_memory = False
            ended: list[tuple[int, Answer]] = []
            left_out: list[Row] = []
            try:
                ended, left_out = self._decode_chunk(batch, joining)
            except torch.cuda.OutOfMemoryError as error:
                if len(together) == 1:
                    raise self._does_not_fit(together[0]) from error
                is_out_of_memory = True
            if is_out_of_memory:  # after the except clause, whose traceback holds on to the tensors
                batch = self._start_again(together)
                left_out = together
                max_size = len(together) // 2
            waiting = left_out + waiting
            batch.tell_listeners(self.tokenizer)
            yield ended

    def _does_not_fit(self, row: Row) -> ExpertError:
        return ExpertError(
            f"expert {self.config.name}: a single prompt of {len(row.ids)} tokens does not fit the"
            " GPU's memory"
        )

    def _start_again(self, rows: list[Row]) -> RunningBatch:
        """Forget what the rows have generated; returns an empty batch to complete them in."""
        for row in rows:
            row.start_again()
        batch = self._new_batch()
        torch.cuda.empty_cache()
        return batch

    def _num_joining(self, batch: RunningBatch, waiting: list[Row], max_size: int) -> int:
        """How many of the waiting rows, sorted by falling length, may join the batch now."""
        if not batch.takes_rows:
            return 0
        longest = max(len(row.ids) for row in batch.rows + waiting[:1])
        return max(0, self._num_fitting(longest, max_size) - len(batch.rows))

    def _new_batch(self) -> RunningBatch:
        return RunningBatch(
            self.model,
            self.config.decoding,
            end_ids=self._end_ids,
            pad_id=self.tokenizer.pad_token_id,
            in_chunks=not self.config.trust_remote_code,
            work=self.work,
        )

    def _rows(self, inbox: Inbox) -> list[Row]:
        """Tokenise what the inbox holds."""
        requests = inbox.take()
        ids, was_cut = self.encode([prompt for _, prompt in requests])
        rows = []
        for (request_id, prompt), row_ids, cut in zip(requests, ids, was_cut, strict=True):
            seed = SeededSampling.seed(self.config.decoding, prompt)
            on_text = inbox.listeners.get(request_id)
            rows.append(Row(request_id, row_ids, cut, seed, on_text=on_text))
        return rows

    @torch.inference_mode()
    def _decode_chunk(
        self, batch: RunningBatch, joining: list[Row]
    ) -> tuple[list[tuple[int, Answer]], list[Row]]:
        """Let rows join and generate a chunk of tokens for all.

        Returns the answers that have ended, as (request id, answer), and the rows that could not
        join yet.
        """
        left_out = []
        for prefix, rows in self._groups(joining):
            if batch.takes_rows:
                batch.join(rows, *self._inputs(prefix, [row.ids for row in rows]))
            else:
                left_out += rows
        ended = batch.advance()
        self.work["answers"] += len(ended)
        if not ended:
            return [], left_out
        completions = [row.completion for row in ended]
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        answers = []
        for row, text in zip(ended, texts, strict=True):
            answer = before_stop(text, self.config.stop)
            has_end = row.completion[-1] in self._end_ids or answer != text.strip()
            answers.append((row.request_id, row.answer(answer, has_end=has_end)))
        return answers, left_out

    def _groups(self, rows: list[Row]) -> Iterator[tuple[tuple[int, ...], list[Row]]]:
        """Prefixes, and the rows (by falling length) that are read together.

        Rows of a group share the prefix, and are of lengths that leave little padding.
        """
        by_prefix: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            by_prefix.setdefault(self._prefix_of(row.ids), []).append(row)
        for prefix, group in by_prefix.items():
            while group:
                size = self._num_read_together(group)
                yield prefix, group[:size]
                group = group[size:]

    def _num_read_together(self, group: list[Row]) -> int:
        """How many of the group's longest rows are read at a time."""
        if self.model_config.is_encoder_decoder:  # its rows start together
            return len(group)
        most_spared = 0
        size = 0
        for index, row in enumerate(group):
            # Padding that is saved if this row and all shorter ones are read apart
            spared = (len(group[0].ids) - len(row.ids)) * (len(group) - index)
            if spared > most_spared:
                most_spared = spared
                size = index
        return len(group) if most_spared < SPARED_TOKENS else size

    def _inputs(
        self, prefix: tuple[int, ...], ids: list[list[int]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Tokens (B, T) that generation continues, and the other arguments of `generate`."""
        rests = [row[len(prefix) :] for row in ids]
        padded = self.tokenizer.pad({"input_ids": rests}, return_tensors="pt")
        inputs = padded.to(self.model.device)  # (B, T)
        input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if self.model_config.is_encoder_decoder:
            return self._decoder_inputs(input_ids, mask)
        if not prefix:
            return input_ids, {"attention_mask": mask}
        shared = input_ids.new_tensor(prefix).expand(len(ids), -1)
        tokens = torch.cat([shared, input_ids], dim=1)
        return tokens, {
            "attention_mask": torch.cat([torch.ones_like(shared), mask], dim=1),
            "past_key_values": self._prefix_cache(prefix, len(ids)),
        }

    def _decoder_inputs(
        self, input_ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """An encoder-decoder's start tokens (B, 1), and the encoded prompts."""
        settings = self.model.generation_config
        start_id = settings.decoder_start_token_id
        if start_id is None:
            start_id = settings.bos_token_id
        tokens = input_ids.new_full((len(input_ids), 1), start_id)
        encoded = self.model.get_encoder()(input_ids=input_ids, attention_mask=mask)
        return tokens, {
            "encoder_outputs": encoded,
            "attention_mask": mask,
            "decoder_attention_mask": torch.ones_like(tokens),
        }

    def _prefix_cache(self, prefix: tuple[int, ...], batch_size: int) -> Any:
        """Keys and values of a prefix for a batch; computed once while the model is loaded."""
        if prefix not in self._prefix_caches:
            ids = torch.tensor([prefix], device=self.model.device)
            output = self.model(ids, use_cache=True, logits_to_keep=1)
            self._prefix_caches[prefix] = output.past_key_values
        cache = copy.deepcopy(self._prefix_caches[prefix])
        cache.batch_repeat_interleave(batch_size)
        return cache

    @functools.cached_property
    def _end_ids(self) -> set[int]:
        """Tokens that end a completion: the model's own, and every token that holds a stop string.

        A stop string that spans tokens still ends the text, but not the generation.
        """
        ends = self.model.generation_config.eos_token_id
        end_ids = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}
        end_ids.discard(None)
        if not self.config.stop:
            return end_ids
        pieces = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        for token, piece in enumerate(pieces):
            if any(stop in piece for stop in self.config.stop):
                end_ids.add(token)
        return end_ids
