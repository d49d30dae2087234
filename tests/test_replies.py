"""What OpenAI-compatible servers reply, in the words that their users report."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from backends.replies import (
    Overflow,
    ReplyError,
    chat_text,
    cut_text,
    overflow_in,
    token_counts,
    wants_completion_limit,
)

OVERFLOWS = [
    (
        "This model's maximum context length is 6048 tokens. However, you requested 6616 tokens"
        " (568 in the messages, 6048 in the completion). Please reduce the length.",
        Overflow(6048, 568),
    ),
    (
        "This model's maximum context length is 2048 tokens. However, your request has 3000 input"
        " tokens plus 16 'max_tokens'. Please reduce one or the other.",
        Overflow(2048, 3000),
    ),
    (
        "This model's maximum context length is 8192 tokens. However, your messages resulted in"
        " 9000 tokens.",
        Overflow(8192, 9000),
    ),
    (
        "The input (4100 tokens) is longer than the model's context length (4096 tokens).",
        Overflow(4096, 4100),
    ),
    (
        "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        Overflow(4096, 5000),
    ),
    (
        "The decoder prompt (length 900) is longer than the maximum model length of 512.",
        Overflow(512, 900),
    ),
    ("max_tokens must be at least 1, got -186.", Overflow()),
    ("Unsupported parameter: 'max_tokens' is not supported with this model.", None),
]


@pytest.mark.parametrize(("message", "overflow"), OVERFLOWS)
def test_an_overflow_is_read_from_each_servers_wording(message, overflow):
    assert overflow_in(message) == overflow


def test_a_server_that_wants_the_newer_limit_says_so():
    assert wants_completion_limit(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
        " 'max_completion_tokens' instead."
    )
    assert not wants_completion_limit("max_tokens must be at least 1, got -186.")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": "4"}, "4"),
        ({"content": None}, ""),
        ({"content": "4", "reasoning_content": "2 + 2"}, "<think>2 + 2</think>\n4"),
        ({"content": None, "reasoning": "2 + 2 is"}, "<think>2 + 2 is"),
        ({"content": None, "refusal": "I cannot help."}, "I cannot help."),
    ],
)
def test_a_message_is_its_thinking_in_tags_and_what_it_says(fields, text):
    assert chat_text(SimpleNamespace(**fields)) == text


def test_counts_that_cannot_be_are_refused():
    assert token_counts(SimpleNamespace(prompt_tokens=7, completion_tokens=3)) == (7, 3)
    assert token_counts(None) == (None, None)
    for wrong in (10**30, -1):
        with pytest.raises(ReplyError, match="prompt tokens"):
            token_counts(SimpleNamespace(prompt_tokens=wrong, completion_tokens=3))


def test_a_cut_text_keeps_both_ends():
    assert cut_text("0123456789", 0.5) == "01289"
    assert cut_text("0123456789", 0.0) == ""
