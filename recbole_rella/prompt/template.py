"""A row in words: fields -> sentences -> the text of a prompt. Plain Jinja2, neither torch nor transformers.

A prompt is made of parts that are rendered once (the profile of a user, the name of an item) and a template that lays
them out for every row. README, "Prompts", lists what a template can use.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from numbers import Number

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from recbole_rella.errors import RellaError

# Mark what a language model learns to say within a document (see `PromptTemplate.document`). Private-use characters,
# removed from every field.
_BEGIN, _END = "\ue000", "\ue001"


class TemplateError(RellaError):
    """A template asks for what the data set does not have, or does not render."""


class Parts(dict):
    """Name -> value of what a text sees as one thing. `thing.name` is the value of that name, whatever Python calls by it."""


class Fields(Parts):
    """Field -> words of one user or item. A field that was not loaded raises, one without a value is ''."""

    def __init__(self, values, kind):
        super().__init__({field: re.sub(f"[{_BEGIN}{_END}]", "", str(words)) for field, words in values.items()})
        self._kind = kind

    def __missing__(self, field):
        raise TemplateError(
            f"a prompt text needs the field {field!r} of the {self._kind}; found {sorted(self)}. "
            f"Is there a .{self._kind} file with that field, and does load_col name it?"
        )


class Rating(float):
    """A rating that is written with the digits that the data set gives it: 4, 3.5, 1234567."""

    def __str__(self):
        return np.format_float_positional(np.float64(self), trim="-")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2 for texts that a configuration brings along: they see what they are given, and run no code.

    A field is found under any name (`item.kind`, `item.items`), before Python's attributes. Only text and numbers are printed: an
    object of Python would stand there with its address, another one in each run.
    """

    def __init__(self):
        super().__init__(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=_printable
        )
        self.filters["fields"] = _fields
        del self.globals["lipsum"]  # other words in each run

    def getattr(self, obj, attribute):
        if not isinstance(obj, Parts):
            return super().getattr(obj, attribute)
        try:
            return obj[attribute]
        except KeyError:
            return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj, argument):
        # Jinja2 reads a field that is called 1990 as a number.
        return self.getattr(obj, str(argument)) if isinstance(obj, Parts) else super().getitem(obj, argument)


def _printable(value):
    """What a text prints, if that is text, a number or a list of them."""
    if not _is_plain(value):
        raise TemplateError(
            f"a prompt text prints a {type(value).__name__}, expected text or a number. Name a part of it, or call it."
        )
    return value


def _is_plain(value):
    if isinstance(value, str | Number | jinja2.Undefined | None):
        return True
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return isinstance(value, list | tuple) and all(map(_is_plain, value))


def clean(text):
    """One line, single spaces, no private marks: what every field goes through before it is shown."""
    return re.sub(rf"[\s{_BEGIN}{_END}]+", " ", str(text)).strip()


def _fields(values):
    """Jinja filter: the fields that have a value, as ``name: value; name: value``, without the ids if there are others."""
    known = {field: value for field, value in values.items() if value}
    named = {field: value for field, value in known.items() if not field.endswith("_id")} or known
    return "; ".join(f"{field.replace('_', ' ')}: {value}" for field, value in named.items())


class Others:
    """The behaviours of a history that are not shown, in summary; worked out where a template asks for it.

    Args:
        count (int): how many they are.
        columns (callable): no arguments, returns their labels and ratings, oldest first (numpy arrays or None).
    """

    def __init__(self, count, columns):
        self.count, self._make = count, columns

    @cached_property
    def _columns(self):
        return self._make() if self.count else (None, None)

    @cached_property
    def liked(self):
        """Part of the others with a positive label, or None."""
        labels, _ = self._columns
        return None if labels is None else float(labels.mean())

    @cached_property
    def mean_rating(self):
        """Mean raw rating of the others, or None."""
        _, ratings = self._columns
        return None if ratings is None else float(ratings.mean())

    @cached_property
    def latest_rating(self):
        """Mean raw rating of the latest ten of the others, or None."""
        _, ratings = self._columns
        return None if ratings is None else float(ratings[-10:].mean())


@dataclass(frozen=True)
class Behaviour:
    """A shown behaviour, as the Prompter hands it over: item id, raw rating or None, label or None, raw time."""

    item: int
    rating: float | None
    label: int | None
    time: int


class PromptTemplate:
    """Renders the text of a prompt, up to the point where the answer follows.

    It can be pickled if the two callables can; what it has rendered is not taken along.

    Args:
        layout (str): text of the Jinja2 template that lays the parts out.
        profile, item, rating, question, system (str): Jinja2 texts of the parts.
        noun (str): what an item is called.
        answers (tuple of str): positive and negative answer.
        user_fields, item_fields (callable): internal id -> dict of field -> words.

    Raises:
        TemplateError: a text is no Jinja2; or, while rendering, it needs a field or a rating that is not there, or reaches beyond
            what it is given.
    """

    def __init__(self, layout, profile, item, rating, question, system, noun, answers, user_fields, item_fields):
        self._given = {name: value for name, value in locals().items() if name != "self"}
        self._environment = _Environment()
        self._user_fields, self._item_fields = user_fields, item_fields
        self._words = {"noun": noun, "yes": answers[0], "no": answers[1]}
        self._answers = answers
        self._compiled = lru_cache(maxsize=32)(self._compile)
        self._texts = {"prompt_template": layout, "prompt_profile": profile, "prompt_item": item, "prompt_rating": rating}
        for key, text in self._texts.items():
            self._compiled(key, text)
        self.question = clean(self._render("prompt_question", question))
        self.system = clean(self._render("prompt_system", system))
        # Rendered once an item or user, not once a row.
        self.item = lru_cache(maxsize=None)(self._item)
        self.profile = lru_cache(maxsize=None)(self._profile)
        self._behaviour = lru_cache(maxsize=1 << 20)(self._behaviour_parts)

    def __reduce__(self):
        return partial(type(self), **self._given), ()

    def _compile(self, key, text):
        try:
            return self._environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{key}: expected Jinja2 text, found an error in line {error.lineno}: {error.message}.") from error

    def _render(self, key, text=None, **values):
        template = self._compiled(key, self._texts[key] if text is None else text)
        try:
            return template.render(**self._words, **values)
        except TemplateError as error:
            raise TemplateError(f"{key}: {error}") from error
        except SecurityError as error:
            raise TemplateError(
                f"{key}: expected a text that reads what it is given, found one that reaches into Python ({error})"
            ) from error
        except jinja2.UndefinedError as error:
            raise TemplateError(f"{key}: a prompt text asks for what is not there: {error}.") from error
        except Exception as error:  # its expressions can fail in any way that Python's can
            raise TemplateError(f"{key}: a prompt text cannot be rendered: {type(error).__name__}: {error}.") from error

    def _item(self, item):
        """Fields and name of an item; one whose fields render to nothing is named by its id."""
        fields = Fields(self._item_fields(item), "item")
        text = clean(self._render("prompt_item", item=fields))
        nameless = not any(character.isalnum() for character in text)
        if nameless:
            text = f"{self._words['noun']} {next(iter(fields.values()))}"
        return {"text": text, "item": fields, "nameless": nameless}

    def has_name(self, item):
        """Whether prompt_item renders to a name for this item; else it is shown by its id."""
        return not self.item(item)["nameless"]

    def sentence(self, item, text):
        """Another text about an item: the sentence that is encoded for retrieval, or its name where that is empty.

        Args:
            item (int): internal id.
            text (str): Jinja2 text, which sees `item` and `noun`.

        Returns:
            str: one line.
        """
        return clean(self._render("retrieval_sentence", text, item=self.item(item)["item"])) or self.item(item)["text"]

    def _profile(self, user):
        fields = Fields(self._user_fields(user), "user")
        return {"profile": clean(self._render("prompt_profile", user=fields)), "user": fields}

    def _behaviour_parts(self, item, rating, label, marked):
        parts = dict(self.item(item))
        if label is not None:
            parts["answer"] = self._answers[0] if label else self._answers[1]
        if rating is not None:
            parts["stars"] = Rating(rating)
            parts["rating"] = clean(self._render("prompt_rating", rating=parts["stars"]))
        if marked:
            for name in ("answer", "rating"):
                if name in parts:
                    parts[name] = f"{_BEGIN}{parts[name]}{_END}"
        return parts

    def text(self, user, target, behaviours, others, marked=False):
        """The prompt of one row, without its answer.

        Args:
            user, target (int): internal ids of the user and of the target item.
            behaviours (list of Behaviour): shown, in this order.
            others (Others): the behaviours that are not shown.
            marked (bool): mark the answers and ratings of the behaviours, for `document`.

        Returns:
            str: lines, with no white space at the end.

        Raises:
            TemplateError: if the template needs a field or a rating that is not there.
        """
        shown = [
            Parts(self._behaviour(b.item, b.rating, b.label, marked), time=b.time, number=number)
            for number, b in enumerate(behaviours, start=1)
        ]
        return self._render(
            "prompt_template",
            **self.profile(user),
            question=self.question,
            system=self.system,
            behaviours=shown,
            target=Parts(self.item(target)),
            others=others,
        ).strip()

    def document(self, user, target, behaviours, others, label):
        """The prompt of one row with its answer, and where in it answers and ratings stand: a text to pretrain on.

        Returns:
            tuple: str; list of (begin, end), the spans of characters that are answers or ratings, in order.
        """
        marked = self.text(user, target, behaviours, others, marked=True)
        joint = "" if marked[-1:].isspace() else " "
        marked += f"{joint}{_BEGIN}{self._answers[0] if label else self._answers[1]}{_END}"
        spans, plain, length = [], [], 0
        for part in re.split(f"([{_BEGIN}{_END}])", marked):
            if part == _BEGIN:
                begin = length
            elif part == _END:
                spans.append((begin, length))
            else:
                plain.append(part)
                length += len(part)
        return "".join(plain), spans
