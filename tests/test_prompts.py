import json
import logging

import numpy as np
import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from config import HFExpertConfig
from prompts import (
    FewShot,
    Message,
    PromptFormat,
    StateTokenizer,
    answer_of,
    cut_middle,
    handed_on,
    knowledge_transfer_prompt,
    read_few_shot,
)
from runtime.errors import PromptError


def test_all_different_answers_are_handed_on_the_latest_last():
    """Answers 7, 8, 7: the seven was given last. With any other wording only the last counts."""
    assert handed_on("7", ["7", "8"], "all-v1") == "Answer 1: 8\n\nAnswer 2: 7"
    assert (
        handed_on("8", ["7", " "], "all-v1")
        == "Answer 1: 7\n\nAnswer 2: (no answer)\n\nAnswer 3: 8"
    )
    assert handed_on("7", ["7 "], "all-v1") == "7"
    assert handed_on("7", ["7", "8"], "paper-v1") == "7"
    assert handed_on(None, [], "all-v1") is None


def test_the_ktp_says_what_the_paper_says_about_one_other_student():
    assert (
        knowledge_transfer_prompt("What is 2 + 2?", "5")
        == "What is 2 + 2?\n\nThere is an answer from another student: 5\n\nUsing it as additional"
        " advice, give a more satisfactory answer directly. Do not mention other students."
    )


def test_braces_and_slot_names_in_question_and_answer_are_plain_text():
    prompt = knowledge_transfer_prompt(
        "Is {answer} or {question} {0} valid?", "{question} {answer} {} }{"
    )
    assert prompt.startswith(
        "Is {answer} or {question} {0} valid?\n\nThere is an answer from another student:"
        " {question} {answer} {} }{\n\nUsing it"
    )


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_previous_answer_is_said_to_be_none(answer):
    assert "from another student: (no answer)\n" in knowledge_transfer_prompt("Why?", answer)


def test_the_ablation_throws_the_previous_answer_away():
    assert knowledge_transfer_prompt("Why?", "because", "none-v1") == "Why?"


def test_an_unknown_ktp_version_names_the_known_ones():
    with pytest.raises(PromptError, match="'v9'; known: paper-v1, code-v1, all-v1, none-v1"):
        knowledge_transfer_prompt("Why?", "because", "v9")


def test_a_plain_prompt_ends_with_the_answer_cue():
    assert PromptFormat("plain").render("Why?", None, "paper-v1") == "Why?\nAnswer:"


def test_few_shot_examples_take_the_form_of_the_call():
    render = PromptFormat("few_shot", examples=(FewShot("1 + 1?", "3", "2"),)).render
    assert (
        render("2 + 2?", None, "paper-v1")
        == "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 2 + 2?\nAnswer:"
    )
    student = "\n\nThere is an answer from another student: "
    advice = (
        "\n\nUsing it as additional advice, give a more satisfactory answer directly. Do not"
        " mention other students."
    )
    assert (
        render("2 + 2?", "5", "paper-v1")
        == f"Question: 1 + 1?{student}3{advice}\nAnswer: 2\n\nQuestion: 2 +"
        f" 2?{student}5{advice}\nAnswer:"
    )


def test_a_template_frames_the_call_and_braces_stay_text():
    render = PromptFormat("template", template="USER: {prompt} ASSISTANT:").render
    assert render("Is {prompt} a set?", None, "paper-v1") == "USER: Is {prompt} a set? ASSISTANT:"
    assert render("Why?", "{prompt}", "code-v1").startswith(
        "USER: Why?\n\nThere are answers from other students: {prompt}\n\nUsing them"
    )


def test_only_a_template_is_part_of_the_identity_of_answers_so_that_older_ones_are_found():
    assert PromptFormat("plain").identity() == {
        "kind": "plain",
        "system_prompt": None,
        "examples": [],
    }
    assert (
        PromptFormat("template", template="{prompt}!").identity()
        != PromptFormat("template", template="{prompt}").identity()
    )


def test_a_few_shot_line_of_another_shape_is_named(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(
        json.dumps({"question": "a", "previous_answer": "b", "answer": "c"})
        + "\n"
        + json.dumps({"question": "a"})
        + "\n"
    )
    with pytest.raises(
        PromptError, match=r"shots\.jsonl:2: expected \{question, previous_answer, answer\}"
    ):
        read_few_shot(path)
    with pytest.raises(PromptError, match=r"none\.jsonl: no such few-shot file"):
        read_few_shot(tmp_path / "none.jsonl")


def test_few_shot_texts_may_hold_line_separators_and_must_be_texts(tmp_path):
    path = tmp_path / "shots.jsonl"
    good = {"question": "one\u2028two\u0085three", "previous_answer": "b", "answer": "c"}
    # `str.splitlines` would cut here
    path.write_text(json.dumps(good, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_few_shot(path) == (FewShot(**good),)
    shape = r"expected \{question, previous_answer, answer\}"
    for line, said in (
        (good | {"question": 1}, shape),
        (good | {"previous_answer": None}, shape),
        ([1, 2, 3], "expected an object, found list"),
    ):
        path.write_text(json.dumps(line) + "\n")
        with pytest.raises(PromptError, match=rf"shots\.jsonl:1: {said}"):
            read_few_shot(path)
    path.write_bytes('{"question": "Où?"}\n'.encode("latin-1"))
    with pytest.raises(PromptError, match=r"shots\.jsonl:1: not UTF-8 text"):
        read_few_shot(path)


def test_chat_uses_the_tokenizers_template_and_is_refused_without_one(bert_encoder):
    tokenizer = AutoTokenizer.from_pretrained(bert_encoder)
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if"
        " add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.chat_template = template
    chat = PromptFormat("chat", system_prompt="Be brief.")
    assert (
        chat.render("Why?", None, "paper-v1", tokenizer.apply_chat_template)
        == "<system>Be brief.<user>Why?<assistant>"
    )
    with pytest.raises(
        PromptError, match="no chat template: a base model wants prompt_format plain or few_shot"
    ):
        chat.render("Why?", None, "paper-v1", None)


def test_cutting_the_middle_keeps_both_ends():
    ids = list(range(10))
    assert cut_middle(ids, 5) == [0, 1, 2, 8, 9]
    assert cut_middle(ids, 2) == [0, 9]
    assert cut_middle(ids, 1) == [0]
    assert cut_middle(ids, 0) == []
    assert cut_middle(ids, 10) == ids


@pytest.fixture(params=["bert", "roberta"])
def encoder_tokenizer(request):
    return AutoTokenizer.from_pretrained(request.getfixturevalue(f"{request.param}_encoder"))


def test_a_bert_state_is_calls_left_segment_start_and_the_sentence_pair(bert_encoder):
    tokenizer = AutoTokenizer.from_pretrained(bert_encoder)
    rows = StateTokenizer(tokenizer, 12).encode(["what is the sum", "paris"], ["yes", None], [3, 4])
    pair = tokenizer("what is the sum", "yes")
    assert pair["token_type_ids"].index(1) == 6  # [CLS] what is the sum [SEP] | yes [SEP]
    assert rows.dtype == np.int32
    assert rows[0].tolist() == [3, 6, *pair["input_ids"], *[0] * 4]
    # An empty second segment
    assert rows[1].tolist() == [
        4,
        3,
        *tokenizer.convert_tokens_to_ids(["[CLS]", "paris", "[SEP]", "[SEP]"]),
        *[0] * 8,
    ]


def test_a_roberta_state_has_its_two_separators_and_pads_with_one(roberta_encoder):
    tokenizer = AutoTokenizer.from_pretrained(roberta_encoder)
    (row,) = StateTokenizer(tokenizer, 12).encode(["abc"], ["de"], [2])
    s, pad, end = 0, 1, 2
    a, b, c, d, e = tokenizer.convert_tokens_to_ids(list("abcde"))
    assert row.tolist() == [2, 6, s, a, b, c, end, end, d, e, end, pad, pad, pad]
    assert row[2:11].tolist() == tokenizer("abc", "de")["input_ids"]


def test_a_decoders_tokenizer_without_separators_gets_a_line_break_between_question_and_answer(
    tiny_pool_dir,
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_pool_dir / "llama-0.2m")
    assert (
        tokenizer("a", "b")["input_ids"] == tokenizer("ab", add_special_tokens=False)["input_ids"]
    )
    (row,) = StateTokenizer(tokenizer, 32).encode(["1 + 1"], ["2"], [3])
    assert tokenizer.decode(row[2 : 2 + 7]) == "1 + 1\n2" and row[1] == 6


def test_special_token_text_stays_plain_text(encoder_tokenizer):
    tokenizer = encoder_tokenizer
    text = " ".join(tokenizer.all_special_tokens)
    (row,) = StateTokenizer(tokenizer, 200).encode([text], [text], [1])
    ids = row[2:].tolist()
    pair = tokenizer("a", "b")["input_ids"]
    used = {
        special: ids.count(special)
        for special in tokenizer.all_special_ids
        if special not in (tokenizer.pad_token_id, tokenizer.unk_token_id)
    }
    # Exactly the pair's own, none from the text
    assert used == {special: pair.count(special) for special in used}
    # Nothing after the first padding
    assert set(ids[ids.index(tokenizer.pad_token_id) :]) == {tokenizer.pad_token_id}


def parts(tokenizer, row):
    """Question and answer ids of a row, taken apart by the segment start and the pair's own
    separators.
    """
    pair = tokenizer("a", "b")["input_ids"]
    num_between = len(pair) - 4 if tokenizer.pad_token_id == 1 else 1  # </s></s> or [SEP]
    ids, start = row[2:].tolist(), int(row[1])
    length = ids.index(tokenizer.pad_token_id) if tokenizer.pad_token_id in ids else len(ids)
    return ids[1 : start - num_between], ids[start : length - 1]


@pytest.mark.parametrize("answer_length", [0, 1, 7, 13, 14, 15, 16, 28, 29, 30, 400])
def test_an_answer_up_to_half_the_budget_is_never_cut_and_a_longer_one_never_below_it(
    encoder_tokenizer, answer_length
):
    # <s> </s></s> </s>, or [CLS] [SEP] [SEP]
    budget = 32 - (4 if encoder_tokenizer.pad_token_id == 1 else 3)
    answer = ["23456789"[i % 8] for i in range(answer_length)]
    for question_length in (1, 7, 13, 14, 15, 16, 28, 29, 30, 400):
        kept_question, kept_answer = cut(encoder_tokenizer, ["1"] * question_length, answer)
        # No room wasted
        assert len(kept_question) + len(kept_answer) == min(budget, question_length + answer_length)
        assert len(kept_answer) >= min(answer_length, budget // 2)
        assert len(kept_question) >= min(question_length, budget - budget // 2)
        if answer_length <= budget // 2 or question_length + answer_length <= budget:
            assert kept_answer == answer
        half = len(kept_answer) // 2
        # Both ends survive
        assert kept_answer[:half] == answer[:half]
        assert kept_answer[len(kept_answer) - half :] == answer[answer_length - half :]


def cut(tokenizer, question, answer):
    """The tokens of a question and of an answer that a state of 32 tokens keeps."""
    text_of = "".join if tokenizer.pad_token_id == 1 else " ".join  # one token a character
    (row,) = StateTokenizer(tokenizer, 32).encode([text_of(question)], [text_of(answer)], [1])
    question_ids, answer_ids = parts(tokenizer, row)
    return (
        tokenizer.convert_ids_to_tokens(question_ids),
        tokenizer.convert_ids_to_tokens(answer_ids),
    )


def test_a_text_longer_than_the_encoder_reads_is_cut_without_a_warning(bert_encoder):
    tokenizer = AutoTokenizer.from_pretrained(bert_encoder, model_max_length=16)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        StateTokenizer(tokenizer, 16).encode(["what is the sum " * 20], [None], [3])
        assert lines == []
        tokenizer(["what is the sum " * 20])
        assert len(lines) == 1  # as transformers does unless told otherwise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_rows_encoded_together_equal_rows_encoded_alone(encoder_tokenizer):
    state = StateTokenizer(encoder_tokenizer, 24)
    questions, answers, left = (
        ["what is the sum", "spell paris backward " * 9, "yes"],
        [None, "no", "answer " * 30],
        [3, 2, 1],
    )
    alone = [
        state.encode([q], [a], [n])[0] for q, a, n in zip(questions, answers, left, strict=True)
    ]
    np.testing.assert_array_equal(state.encode(questions, answers, left), np.stack(alone))


def strict_template(refused_role):
    """A chat template as Gemma's and older Mistral's: it raises for a role it does not know."""

    def apply(messages, tokenize, add_generation_prompt):
        if any(message["role"] == refused_role for message in messages):
            raise TemplateError(f"{refused_role.title()} role not supported")
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    return apply


def test_a_system_prompt_goes_to_the_user_where_the_template_has_no_system_role():
    chat = PromptFormat("chat", system_prompt="Be brief.")
    prompt = chat.render("Why?", None, "paper-v1", strict_template("system"))
    assert prompt == "<user>Be brief.\n\nWhy?"


def test_a_template_that_drops_the_system_prompt_gets_it_in_the_users_turn():
    chat = PromptFormat("chat", system_prompt="Be brief.")

    def apply(messages, tokenize, add_generation_prompt):
        return "".join(m["content"] for m in messages if m["role"] == "user")

    assert chat.render("Why?", None, "paper-v1", apply) == "Be brief.\n\nWhy?"


def test_the_role_of_the_system_prompt_can_be_named():
    system = PromptFormat("chat", system_prompt="Be brief.", system_role="system")
    with pytest.raises(PromptError, match=r"System role not supported\. Try system_role: user"):
        system.render("Why?", None, "paper-v1", strict_template("system"))
    user = PromptFormat("chat", system_prompt="Be brief.", system_role="user")
    prompt = user.render("Why?", None, "paper-v1", strict_template("nobody"))
    assert prompt == "<user>Be brief.\n\nWhy?"


def test_a_broken_template_is_named_with_its_own_message():
    chat = PromptFormat("chat")
    with pytest.raises(PromptError, match="User role not supported"):
        chat.render("Why?", None, "paper-v1", strict_template("user"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>8 x 9</think>\n\n72", "72"),
        ("8 x 9 is 72, so B.\n</think>\nB", "B"),  # the template opened it in the prompt
        ("<think>8 x 9 is 7", ""),  # tokens ran out
        ("<THINKING>no</THINKING> yes", "yes"),
        ("<think>a</think> 5 <think>b</think> 6", "6"),
        ("<think>a</think> 5 <think>once more", "5"),
        (" 72 \n", " 72 \n"),  # as it is
        ("a < b > c </thin>", "a < b > c </thin>"),
        ("<think></think>", ""),
    ],
)
def test_the_answer_is_what_follows_the_thinking_part(text, answer):
    assert answer_of(text) == answer


def test_thinking_tags_can_be_others_or_none():
    assert answer_of("<plan>x</plan>y", ["plan"]) == "y"
    assert answer_of("<think>x</think>y", ["plan"]) == "<think>x</think>y"
    assert answer_of("<think>x</think>y", []) == "<think>x</think>y"


def test_a_part_that_the_prompt_opens_and_nothing_closes_is_no_answer():
    assert answer_of("8 x 9 is 7", prompt="user: 8 x 9? assistant: <think>\n") == ""
    assert answer_of("72", prompt="user: 8 x 9? assistant: <think>\n\n</think>\n") == "72"


def test_a_chat_template_is_told_what_the_configuration_says_and_only_then_the_key_knows():
    def template(messages, **told):
        return f"{messages[-1]['content']} {told['enable_thinking']}"

    plain = {"name": "e", "source": "s", "params_b": 1.0}
    told = HFExpertConfig(**plain, chat_template_kwargs={"enable_thinking": False})
    quiet = PromptFormat.of(told)
    assert quiet.render("Why?", None, "paper-v1", template) == "Why? False"
    assert quiet.identity()["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in PromptFormat.of(HFExpertConfig(**plain)).identity()
    with pytest.raises(ValueError, match="DER sets tokenize itself"):
        HFExpertConfig(**plain, chat_template_kwargs={"tokenize": True})
    with pytest.raises(ValueError, match="chat_template_kwargs are for prompt_format chat"):
        HFExpertConfig(**plain, prompt_format="plain", chat_template_kwargs={"a": 1})


CONVERSATION = (
    Message("system", "Be brief."),
    Message("user", "What is 1 + 1?"),
    Message("assistant", "2"),
)


def as_json(messages, **options):
    del options
    return json.dumps(messages)


def test_earlier_messages_stand_before_the_question_in_a_chat():
    format_ = PromptFormat("chat", system_prompt="You are an expert.")
    messages = json.loads(format_.render("And 2?", "5", "paper-v1", as_json, CONVERSATION))
    assert messages[0] == {"role": "system", "content": "You are an expert.\n\nBe brief."}
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[3]["content"] == knowledge_transfer_prompt("And 2?", "5")


def test_a_template_without_a_system_role_gets_it_in_the_first_turn():
    def refuses_system(messages, **options):
        if messages[0]["role"] == "system":
            raise TemplateError("no system role")
        return as_json(messages, **options)

    format_ = PromptFormat("chat")
    messages = json.loads(format_.render("And 2?", None, "paper-v1", refuses_system, CONVERSATION))
    assert messages[0]["content"] == "Be brief.\n\nWhat is 1 + 1?"
    assert messages[-1] == {"role": "user", "content": "And 2?"}


def test_a_format_without_roles_gets_a_transcript():
    assert PromptFormat("plain").render("And 2?", None, "paper-v1", context=CONVERSATION) == (
        "Be brief.\n\nUser: What is 1 + 1?\n\nAssistant: 2\n\nAnd 2?\nAnswer:"
    )
