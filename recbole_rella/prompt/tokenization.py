"""Text of a prompt -> token ids: chat format, answer tokens, and lines that are tokenized once.

A prompt is mostly lines that came before (the behaviours). They are tokenized once and joined, which equals tokenizing
the whole text only where no token can span a line break; that is checked against the vocabulary, and a tokenizer that
fails the check tokenizes every prompt whole.

The chat format alone brings control tokens. Text that is spelled as one (a title `</s>`) is broken up by a space, `< /s>`: then no
tokenizer takes it for more than text, and the text of a prompt still gives its token ids in any other program.
"""

import copy
import logging
import re
from bisect import bisect_left, bisect_right
from datetime import datetime
from functools import lru_cache

from recbole_rella.errors import RellaError

logger = logging.getLogger(__name__)

_MARK = "\ue002"  # stands for the user's text while a chat template is taken apart
_SAID_WHOLE = "The tokenizer can join text across lines: every prompt is tokenized whole."
_LINE_STARTS = re.compile(r"(?<=\n)(?=\S)")
# Some chat templates (Llama 3.2, SmolLM3) tell the LLM today's date, by strftime_now. Scores must be the same on another day, so
# this takes its place, with the date that Llama 3.1's template has where it is given none.
_DATE = datetime(2024, 7, 26)
_STRFTIME_NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{_DATE.strftime(f'%{code}')}')" for code in "aAbBdHIjmMpSwyY")
    + " }}{% endmacro %}"
)


class AnswerTokenError(RellaError):
    """The answer words are not one distinct token each where the answer is read."""


class TokenPlacesError(RellaError):
    """The tokenizer does not tell where in a text its tokens stand."""


class ChatTemplateError(RellaError):
    """There is no chat template, or it does not do what is needed of it."""


def _spans_lines(token):
    """Whether text that follows a line break could be part of this token of a vocabulary."""
    text = token.replace("Ċ", "\n").replace("Ġ", " ").replace("▁", " ")
    return re.search(r"\n\s*\S", text) is not None


class ControlTokens:
    """What a tokenizer takes for a token of its own wherever it is spelled; text of the data is kept from being one.

    Not all that steer an LLM are called special: Qwen's <think> and Gemma's <unused0> are not. Added tokens that are plain words or
    white space (Gemma has some for several line breaks) are none.

    Args:
        tokenizer (transformers.PreTrainedTokenizerBase): of an LLM or an encoder.
    """

    def __init__(self, tokenizer):
        try:
            added = tokenizer.added_tokens_decoder.values()
        except NotImplementedError:  # Mistral's own library, which reads no control tokens out of text
            added = []
        texts = {t.content for t in added if t.special or re.fullmatch(r"[<\[].*[>\]]", t.content)}
        self._pattern, self._has_said = _any_of([text for text in texts if len(text.strip()) > 1]), False

    def broken_up(self, text, spans=()):
        """A text in which nothing is spelled as a control token: a space stands behind the first character of what was.

        Args:
            text (str): of the data.
            spans (list of tuple): (begin, end) in characters, of parts of the text.

        Returns:
            tuple: str; list of tuple, where the parts are then.
        """
        while found := list(self._pattern.finditer(text)):
            if not self._has_said:
                logger.warning(
                    "Some text of the prompts is spelled as %r, a control token of this LLM; it becomes text, with a space in it. "
                    "Control tokens belong in a chat template (prompt_chat).",
                    found[0][0],
                )
                self._has_said = True
            breaks = [match.start() + 1 for match in found]
            spans = [(begin + bisect_right(breaks, begin), end + bisect_right(breaks, end - 1)) for begin, end in spans]
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text, spans


def _any_of(texts):
    """A pattern of any of the texts, the longest first. Most of a prompt begins like none of them, and some LLMs have thousands."""
    if not texts:
        return re.compile("(?!)")
    beginnings, longest_first = sorted({text[:3] for text in texts}), sorted(texts, key=len, reverse=True)
    return re.compile("(?={})(?:{})".format(*("|".join(map(re.escape, group)) for group in (beginnings, longest_first))))


class PromptTokenizer:
    """Token ids of a prompt, as the LLM sees it: chat format or special tokens included.

    Args:
        tokenizer (transformers.PreTrainedTokenizerBase): the LLM's.
        chat (str): auto (use the tokenizer's chat template where it has one), always or never; not read where `template` is given.
        system (str): the system text; used in a chat format only.
        answers (tuple of str): positive and negative answer.
        template (str, optional): a chat template (Jinja2), which takes the place of the tokenizer's own.

    The tokenizer keeps the chat template that is used: `template`, or its own, with the date standing still. All can be pickled.

    Attributes:
        is_chat (bool): whether prompts have a chat format.
        start (list of int): special tokens before the text of a prompt. A tokenizer's own chat template writes them into the text
            itself, or means that there are none; `template` may leave them to the tokenizer.

    Raises:
        ChatTemplateError: `chat` is always and the tokenizer has no chat template, or the template fails or changes the text.
    """

    def __init__(self, tokenizer, chat, system, answers, template=None):
        self.tokenizer, self.answers = tokenizer, answers
        self._control = ControlTokens(tokenizer)
        if chat == "always" and not (template or tokenizer.chat_template):
            raise ChatTemplateError(
                "prompt_chat: expected auto, never, vicuna or the path of a chat template for this LLM, found always; its "
                "tokenizer has no chat template."
            )
        self.is_chat = template is not None or (chat != "never" and bool(tokenizer.chat_template))
        self._before = self._after = ""
        if self.is_chat:
            used = template or tokenizer.get_chat_template()
            tells_date = "strftime_now" in used and not used.startswith(_STRFTIME_NOW)
            tokenizer.chat_template = _STRFTIME_NOW + used if tells_date else used
            self._before, self._after = self._chat_frame(system)
        writes_start = self._before.startswith(tokenizer.bos_token or "\0") if template else self.is_chat
        self.start = [] if writes_start else self._tokens_before()
        self._joins_lines = tokenizer.is_fast and not any(_spans_lines(token) for token in tokenizer.get_vocab())
        if self._joins_lines:
            self._line_break, self._end = self._ids("\n"), self._ids("\nx")
            self._joins_lines = self._end[: len(self._line_break)] == self._line_break
        if not self._joins_lines:
            logger.info(_SAID_WHOLE)
        self._remember_lines()

    def _remember_lines(self):
        self._line = lru_cache(maxsize=1 << 18)(self._tokenize_line)
        self._line_ends = lru_cache(maxsize=1 << 18)(self._token_ends)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("_line", "_line_ends")}

    def __setstate__(self, state):
        vars(self).update(state)
        self._remember_lines()

    def _tokens_before(self):
        """The special tokens before a text, not those after it: an end token would stand where the answer is read."""
        plain, special = (self.tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
        places = range(len(special) - len(plain) + 1)
        return next((special[:place] for place in places if special[place : place + len(plain)] == plain), [])

    @property
    def tokenizes_whole(self):
        """Whether every prompt is tokenized in one piece."""
        return not self._joins_lines

    def tokenizing_whole(self):
        """Another one, which tokenizes every prompt in one piece."""
        logger.info(_SAID_WHOLE)
        other = copy.copy(self)
        other._joins_lines = False
        return other

    def _chat_frame(self, system):
        """What the chat template puts before and after the user's text."""

        def render(messages):
            # enable_thinking: templates without it ignore it; those with it would else answer with a thought.
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)

        try:
            text = render([{"role": "system", "content": system}, {"role": "user", "content": _MARK}])
            shows_system = system.strip() in text
        except Exception:  # jinja2's own errors: some templates refuse a system role
            shows_system = False
        if not shows_system:
            try:
                text = render([{"role": "user", "content": f"{system}\n\n{_MARK}"}])
            except Exception as error:
                raise ChatTemplateError(
                    f"prompt_chat: expected a chat template that renders a user's text, found one that fails ({error})."
                ) from error
        if text.count(_MARK) != 1:
            raise ChatTemplateError(f"prompt_chat: expected a chat template that shows the user's text once, found {text!r}.")
        return tuple(text.split(_MARK))

    def _ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def framed(self, text):
        """The text that is tokenized for a prompt: chat format included, special start tokens left out."""
        return self._before + self._control.broken_up(text)[0] + self._after

    def whole(self, text):
        """Token ids of a prompt, tokenized in one piece: the reference for `ids`.

        Returns:
            list of int.
        """
        return self.start + self._ids(self.framed(text))

    def _tokenize_line(self, line):
        """Token ids of a line as they are between a line break before it and another line after it, or None."""
        ids = self._ids("\n" + line + "x" if line.endswith("\n") else "\n" + line)
        tail = self._end[len(self._line_break) :] if line.endswith("\n") else []
        fits = ids[: len(self._line_break)] == self._line_break and (not tail or ids[-len(tail) :] == tail)
        return ids[len(self._line_break) : len(ids) - len(tail)] if fits else None

    def ids(self, text):
        """Token ids of a prompt; equal to `whole`, but lines that were seen before cost nothing.

        Returns:
            list of int.
        """
        return self._in_lines(self.framed(text))[0]

    def _in_lines(self, framed):
        """Token ids of a framed text; the lines that they were joined of, each with its number of tokens (one, of all of it,
        where it was tokenized whole)."""
        if not self._joins_lines:
            return self._in_one(framed)
        first, *lines = _LINE_STARTS.split(framed)
        tail = self._end[len(self._line_break) :]
        head = self._ids(first + "x") if lines else self._ids(first)
        if lines and head[-len(tail) :] != tail:
            return self._in_one(framed)
        ids = self.start + (head[: -len(tail)] if lines else head)
        joined = [(first, len(ids))]
        for line in lines:
            piece = self._line(line)
            if piece is None:
                return self._in_one(framed)
            ids.extend(piece)
            joined.append((line, len(piece)))
        return ids, joined

    def _in_one(self, framed):
        ids = self.start + self._ids(framed)
        return ids, [(framed, len(ids))]

    def with_places(self, text, places):
        """Token ids of a prompt, those of `ids`, and before which of them some places of its text stand.

        A token of which a place is in the middle counts as behind it.

        Args:
            text (str): of the prompt.
            places (list of int): in characters, ascending.

        Returns:
            tuple: list of int; list of int, from 0 to the number of ids.

        Raises:
            TokenPlacesError: the tokenizer does not tell where its tokens stand.
        """
        if not self.tokenizer.is_fast:
            raise TokenPlacesError(
                "spa_tokens: expected an LLM with a fast tokenizer, which tells where in a text its tokens stand, found "
                f"{type(self.tokenizer).__name__}."
            )
        text, spans = self._control.broken_up(text, [(place, place) for place in places])
        ids, joined = self._in_lines(self._before + text + self._after)
        # A prompt in one piece is another one each time: what it is cut into is not worth remembering.
        ends_of = self._line_ends if len(joined) > 1 else self._token_ends
        before, begin, tokens, remaining = [], 0, 0, iter(joined)
        line, count = next(remaining)
        ends = None
        for _, place in spans:
            place += len(self._before)
            while place > begin + len(line):
                begin, tokens, ends = begin + len(line), tokens + count, None
                line, count = next(remaining)
            ends = ends_of(line, begin == 0) if ends is None else ends
            before.append(tokens + min(count, bisect_right(ends, place - begin)))
        return ids, before

    def _token_ends(self, line, is_first):
        """Where in a line its tokens end, ascending; those before the text of the first line end at 0."""
        context = "" if is_first else "\n"
        offsets = self.tokenizer(context + line, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ends = [max(end - len(context), 0) for _, end in offsets]
        return [0] * len(self.start) + ends if is_first else ends[len(self._line_break) :]

    def with_spans(self, texts, spans, places=None):
        """Token ids of plain texts, which tokens stand for the given spans of characters, and before which some places are.

        Args:
            texts (list of str): n texts.
            spans (list of list of tuple): (begin, end) in characters, ascending, for every text.
            places (list of list of int, optional): in characters, ascending, for every text.

        Returns:
            list of tuple: token ids; for each span the positions of the tokens that overlap it, none of which is of two; for each
            place the position of the first token that begins there or later (list of int each).
        """
        places = [[] for _ in texts] if places is None else places
        both = [[*spans, *((place, place) for place in asked)] for spans, asked in zip(spans, places)]
        texts, both = zip(*map(self._control.broken_up, texts, both))
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        results = []
        for ids, offsets, marked, asked in zip(encoded["input_ids"], encoded["offset_mapping"], both, places):
            begins, count = [begin for begin, _ in offsets], len(marked) - len(asked)
            before = [len(self.start) + bisect_left(begins, place) for _, place in marked[count:]]
            tokens, number = [[] for _ in range(count)], 0
            for position, (begin, end) in enumerate(offsets):
                while number < count and begin >= marked[number][1]:
                    number += 1
                if number < count and end > marked[number][0]:
                    tokens[number].append(position + len(self.start))
            results.append((self.start + ids, tokens, before))
        return results

    def joint(self, text):
        """What stands between a prompt and its answer: nothing after white space (a chat turn), else a space."""
        return "" if self.framed(text)[-1:].isspace() else " "

    def answer_ids(self, texts):
        """The two token ids whose logits are compared, found in the context of the prompts' ends.

        Args:
            texts (list of str): prompts, without answers.

        Returns:
            tuple of int: token ids of the positive and of the negative answer.

        Raises:
            AnswerTokenError: an answer is not one token there, both are the same, or prompts differ in it; both
                tokenizations are shown.
        """
        found = None
        for text in dict.fromkeys(texts):
            # The last line says all about the place of the answer, and costs less than the prompt.
            ending = self.framed(text)[-200:]
            prompt = self._ids(ending)
            full = [self._ids(ending + self.joint(text) + answer) for answer in self.answers]
            ids = [f[len(prompt) :] for f in full]
            fits = all(f[: len(prompt)] == prompt for f in full) and all(len(i) == 1 for i in ids) and ids[0] != ids[1]
            if not fits or (found or ids) != ids:
                shown = "; ".join(
                    f"{answer!r}: {self.tokenizer.convert_ids_to_tokens(f)[-6:]}" for answer, f in zip(self.answers, full)
                )
                raise AnswerTokenError(
                    "prompt_answers: expected two words that are one distinct token each after the prompt (the same after "
                    f"every prompt), found {shown}, after {self.tokenizer.convert_ids_to_tokens(prompt)[-4:]}. "
                    "Choose other prompt_answers, or let the prompt end otherwise."
                )
            found = ids
        return found[0][0], found[1][0]
