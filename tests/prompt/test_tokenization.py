"""Joined lines equal the whole text; answer tokens; chat formats."""

import logging
import pickle
import re
from collections import Counter
from itertools import chain

import pytest
from helpers import FAMILIES, SHIPPED, TOKENIZERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import ByT5Tokenizer

from recbole_rella.prompt.tokenization import AnswerTokenError, ChatTemplateError, PromptTokenizer

_made = {}


def prompt_tokenizer(kind, chat="auto", answers=("Yes", "No")):
    if kind not in _made:
        _made[kind] = TOKENIZERS[kind]()
    return PromptTokenizer(_made[kind], chat, "Answer with one word.", answers)


words = st.text(st.sampled_from(list("abYesNo 1(:),.'\t\n-é星😀")), max_size=12)
lines = st.lists(st.one_of(words, st.sampled_from(["Yes, 5 stars", "Drama Story 2 (1991):", "", " No", "stars"])), max_size=12)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=lines)
def test_joined_lines_equal_the_whole_text(kind, lines):
    tokenizer = prompt_tokenizer(kind)
    text = "\n".join(lines)
    assert tokenizer.ids(text) == tokenizer.whole(text)
    assert tokenizer.ids(text) == tokenizer.whole(text)  # now from the cache


@pytest.mark.parametrize(
    "kind", ["byte_level", "byte_level_chat", "tiktoken", "sentence_piece", "sentence_piece_first", "sentence_piece_no_prefix"]
)
def test_lines_are_tokenized_once(kind, monkeypatch):
    tokenizer = prompt_tokenizer(kind)
    calls = []
    ids = tokenizer._ids
    monkeypatch.setattr(tokenizer, "_ids", lambda text: calls.append(text) or ids(text))
    text = "First\n" + "Toy Story (1995): Yes, 5 stars\nHeat (1995): No, 2 stars\n" * 20 + "GoldenEye (1995):"
    assert tokenizer.ids(text) == tokenizer.start + ids(tokenizer.framed(text))
    assert len(calls) <= 9  # each line once, and the few lines of a chat format


def test_a_token_across_lines_is_found_out():
    assert not prompt_tokenizer("lines_joined")._joins_lines
    assert prompt_tokenizer("byte_level")._joins_lines and prompt_tokenizer("sentence_piece")._joins_lines


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("ending", ["GoldenEye (1995):", "No Way Out (1987):", "Yes (2000)\nAnswer:", "Is it No or Yes?\n\nNo:"])
def test_answer_tokens_in_context(kind, ending):
    """The tokens are those that follow the prompt; titles that hold Yes or No change nothing."""
    tokenizer = prompt_tokenizer(kind)
    yes, no = tokenizer.answer_ids([ending, "Heat (1995):"])
    for token, answer in ((yes, "Yes"), (no, "No")):
        whole = tokenizer.whole(ending)
        with_answer = tokenizer.start + tokenizer._ids(tokenizer.framed(ending) + tokenizer.joint(ending) + answer)
        assert with_answer == [*whole, token]


def test_answers_that_share_a_first_token_show_both():
    tokenizer = prompt_tokenizer("byte_level", answers=("Yes1", "Yes2"))
    with pytest.raises(AnswerTokenError, match=r"'Yes1': \[.*\]; 'Yes2': \[.*\], after"):
        tokenizer.answer_ids(["Heat:"])


def test_chat_modes():
    chat = prompt_tokenizer("byte_level_chat")
    assert chat.is_chat and chat.framed("Hello") == (
        "<|system|>\nAnswer with one word.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n"
    )
    assert chat.joint("Hello") == ""
    plain = prompt_tokenizer("byte_level_chat", chat="never")
    assert not plain.is_chat and plain.framed("Hello") == "Hello" and plain.joint("Hello") == " "
    with pytest.raises(
        ValueError, match="prompt_chat: expected auto, never, vicuna or the path of a chat template for this LLM, found always"
    ):
        prompt_tokenizer("byte_level", chat="always")


def test_a_template_without_a_system_role_gets_the_text_in_the_users_turn():
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[INST] {{ messages[0].content }} [/INST]"
    )
    chat = PromptTokenizer(tokenizer, "auto", "Be short.", ("Yes", "No"))
    assert chat.framed("Hello") == "[INST] Be short.\n\nHello [/INST]" and chat.joint("Hello") == " "


def test_a_template_that_leaves_out_the_system_role_gets_the_text_in_the_users_turn():
    """The first template of Phi-3 did so, without a word."""
    template = "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    chat = PromptTokenizer(TOKENIZERS["byte_level"](), "file.jinja", "Be short.", ("Yes", "No"), template)
    assert chat.framed("Hello") == "<|user|>\nBe short.\n\nHello<|end|>\n"


def test_a_template_of_ones_own_takes_the_place_of_the_tokenizers():
    tokenizer = TOKENIZERS["sentence_piece_chat"]()
    for template, start in (("{{ bos_token }}Q: {{ messages[-1].content }}", []), ("Q: {{ messages[-1].content }}", [1])):
        chat = PromptTokenizer(tokenizer, "file.jinja", "", ("Yes", "No"), template)
        assert chat.is_chat and chat.start == start and chat.ids("Heat")[:1] == [1] and chat.ids("Heat").count(1) == 1
        assert tokenizer.chat_template == template
    with pytest.raises(ChatTemplateError, match="renders a user's text, found one that fails .*nothing works"):
        PromptTokenizer(tokenizer, "file.jinja", "", ("Yes", "No"), "{{ raise_exception('nothing works') }}")
    with pytest.raises(ChatTemplateError, match="shows the user's text once, found 'Q'"):
        PromptTokenizer(tokenizer, "file.jinja", "", ("Yes", "No"), "Q")


def test_start_tokens_come_once_and_no_end_token():
    assert prompt_tokenizer("sentence_piece").ids("Heat:")[0] == 1
    tokenizer = TOKENIZERS["sentence_piece"]()
    from tokenizers import processors

    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    ids = PromptTokenizer(tokenizer, "never", "", ("Yes", "No")).ids("Heat:")
    assert ids[0] == 1 and 2 not in ids


@pytest.mark.parametrize(("kind", "told"), [("byte_level", "Yes5starsNo"), ("sentence_piece", "Yes,5starsNo")])
def test_spans_become_positions(kind, told):
    """Every token that overlaps a span, and no other; the second tokenizer has a token for an answer with its comma."""
    tokenizer = prompt_tokenizer(kind)
    text = "Comedy Story 1 (1990): Yes, 5 stars\nHeat: No"
    spans = [(text.index("Yes"), text.index("Yes") + 3), (text.index("5 stars"), text.index("\n")), (text.index("No"), len(text))]
    ((ids, tokens, _),) = tokenizer.with_spans([text], [spans])
    assert ids == tokenizer.whole(text)
    assert tokenizer.tokenizer.decode([ids[p] for p in chain(*tokens)]).replace(" ", "") == told


def test_every_family_has_a_tokenizer_kind_of_its_own():
    assert {make for *_, make, _ in FAMILIES.values()} & set(TOKENIZERS.values())


KINDS = {**TOKENIZERS, **{f"{name}, shipped": make for name, (_, _, make) in SHIPPED.items()}, "bytes, in Python": ByT5Tokenizer}
SPELLED = [
    "<|end|>",
    "</s>",
    "<s>",
    "<|assistant|>",
    "<start_of_turn>",
    "[INST]",
    "<bos>",
    "<|begin|>",
    "<think>",
    "<pad>",
    "<extra_id_0>",
]


def spelled_tokenizer(kind):
    if kind not in _made:
        _made[kind] = KINDS[kind]()
    return PromptTokenizer(_made[kind], "auto", "Answer with one word.", ("Yes", "No"))


def controls(tokenizer, ids):
    """Control tokens of a prompt: all that are special, but for single bytes, which stand for rare letters."""
    special = {i for i, token in tokenizer.tokenizer.added_tokens_decoder.items() if not re.fullmatch("<0x..>", token.content)}
    return Counter(i for i in ids if i in special)


@pytest.mark.parametrize("kind", KINDS)
def test_titles_are_no_control_tokens(kind):
    tokenizer = spelled_tokenizer(kind)
    assert set(SPELLED) & {token.content for token in tokenizer.tokenizer.added_tokens_decoder.values()}
    plain = "Person.\nHeat (1995): Yes, 5 stars\nNo Way Out (1987):"
    expected = controls(tokenizer, tokenizer.ids(plain))
    titles = [*SPELLED, "".join(SPELLED), "<|end|> of <|assistant|>", "</s</s>>", "<<s>s>", " </s> ", "<|end|>\n</s>"]
    for title in titles:
        for text in (plain.replace("Heat", title), plain.replace("No Way Out", title), plain.replace("Person.", title), title):
            ids = tokenizer.ids(text)
            assert ids == tokenizer.whole(text) and controls(tokenizer, ids) == expected
            # The text of the prompt gives its ids in any other program.
            assert ids == tokenizer.start + tokenizer.tokenizer(tokenizer.framed(text), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.lists(st.sampled_from([*SPELLED, "<", "|", ">", "end", "/s", "s>", " ", "é", "Yes"]), max_size=5).map("".join),
        max_size=6,
    )
)
def test_joined_lines_with_titles_that_are_spelled_as_control_tokens(kind, lines):
    tokenizer, text = spelled_tokenizer(kind), "\n".join(lines)
    assert tokenizer.ids(text) == tokenizer.whole(text)
    assert controls(tokenizer, tokenizer.ids(text)) == controls(tokenizer, tokenizer.ids("a"))


def test_tokens_that_are_no_special_ones_steer_an_llm_too():
    """As Qwen's <tool_call>; white space and words that are tokens of their own stay what they are."""
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "[gMASK]", "  ", "Story")])
    prompts = PromptTokenizer(tokenizer, "never", "", ("Yes", "No"))
    assert prompts.framed("<tool_call> [gMASK]  Story") == "< tool_call> [ gMASK]  Story"
    assert tokenizer.convert_ids_to_tokens(prompts.ids("a  Story")) == ["a", "  ", "Story"]


def test_one_line_says_that_text_is_broken_up(caplog):
    tokenizer = spelled_tokenizer("byte_level_chat")
    with caplog.at_level(logging.WARNING):
        tokenizer.ids("Heat <3 [x]:")
        assert not caplog.records
        for _ in range(2):
            tokenizer.ids("<|end|>\n<|user|>:")
    (record,) = caplog.records
    assert "spelled as '<|end|>', a control token of this LLM" in record.message and "prompt_chat" in record.message


def test_spans_move_with_text_that_is_broken_up():
    tokenizer = spelled_tokenizer("byte_level")
    text = "<|end|>: Yes, 5 stars\n<|user|><|end|>: No, </think> stars\n</s>: No"
    told = ["Yes", "5 stars", "No", "</think> stars"]
    spans = [(text.index(word), text.index(word) + len(word)) for word in told]
    ((ids, tokens, _),) = tokenizer.with_spans([text], [spans])
    assert ids == tokenizer.whole(text)
    assert tokenizer.tokenizer.decode([ids[p] for p in chain(*tokens)]).replace(" ", "") == "".join(told).replace(" ", "")


@pytest.mark.parametrize("kind", ["byte_level_chat", "sentence_piece_chat", "lines_joined"])
def test_a_tokenizer_can_be_pickled(kind):
    """As workers that do not fork get it."""
    tokenizer = spelled_tokenizer(kind)
    text = "Person.\nHeat </s> (1995): Yes, 5 stars\nNo Way Out (1987):"
    expected = tokenizer.ids(text)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.ids(text) == again.whole(text) == expected and again.framed(text) == tokenizer.framed(text)
    assert again.answer_ids([text]) == tokenizer.answer_ids([text]) and again._joins_lines == tokenizer._joins_lines
    assert again._line is not tokenizer._line
