"""A row in words: fields -> sentences -> the text of a prompt. Plain Jinja2, neither torch nor transformers.

A prompt is made of parts that are rendered once (the profile of a user, the name of an item) and a template that lays
them out for every row. docs/prompts.md lists what a template can use.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial, wraps
from itertools import zip_longest
from numbers import Number

import jinja2
import numpy as np
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from recbole_rella.errors import RellaError
from recbole_rella.key_rules import HISTORY_NUMBERS, same_field

# Mark what a language model learns to say within a document (see `PromptTemplate.document`), and the places of soft tokens, by
# number (see `places_of_marks`): n is the character n behind _SOFT, of which no template leaves a half. Private-use characters,
# removed from every field.
_BEGIN, _END, _SOFT, _LAST = "\ue000", "\ue001", "\U000f0000", "\U0010ffff"
_ANY_MARK = f"{_BEGIN}{_END}{_SOFT}-{_LAST}"
_MARKS = re.compile(f"[{_ANY_MARK}]")
_SPANS = re.compile(f"{_BEGIN}([^{_ANY_MARK}]*){_END}([{_SOFT}-{_LAST}])?")
# What is marked, as arguments of `PromptTemplate.text`: for documents, and for places of soft tokens.
FOR_DOCUMENTS = {"soft": ("answer", "rating"), "marked": True}
FOR_PLACES = {"soft": ("text", "answer", "rating")}
_CLOSING = ")]}\"'\u2019\u201d\u00bb"


# Numbers of the target that a template can use, and what they are called among those of the history.
_OF_TARGET = {"mean_rating": "item_mean", "count": "item_count"}


class TemplateError(RellaError):
    """A template asks for what the data set does not have, or does not render."""


class Parts(dict):
    """Name -> value of what a text sees as one thing. `thing.name` is the value of that name, whatever Python calls by it."""


class Fields(Parts):
    """Field -> words of one user or item. A field that was not loaded raises, one without a value is ''."""

    def __init__(self, values, kind):
        super().__init__({field: _MARKS.sub("", str(words)) for field, words in values.items()})
        self._kind = kind

    def __missing__(self, field):
        raise TemplateError(
            f"a prompt text needs the field {field!r} of the {self._kind}; found {sorted(self)}. "
            f"Is there a .{self._kind} file with that field, and does load_col name it?"
        )


class Rating(float):
    """A rating that is written with the digits that the data set gives it: 4, 3.5, 1234567; 0 without a sign."""

    def __new__(cls, value):
        return super().__new__(cls, float(value) + 0.0)

    def __str__(self):
        return np.format_float_positional(np.float64(self), trim="-")


def as_numbers(names, values):
    """Numbers of a row as a template prints them: counts as integers, others with their digits, None for nan.

    Args:
        names (tuple of str), values (numpy.ndarray): float32, as of HistoryFeatures.

    Returns:
        dict: str -> int, Rating or None.
    """
    # The shortest decimal of a float32, not the digits that float64 makes of it.
    texts = [None if np.isnan(value) else str(value) for value in values]
    return {name: text and (int(float(text)) if name.endswith("_count") else Rating(text)) for name, text in zip(names, texts)}


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
            if attribute == "join" and isinstance(obj, str):  # Python's own takes no marks along
                return lambda texts: obj.join(str(text) if isinstance(text, _Marked) else text for text in texts)
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


class _Marked(str):
    """A text that is marked where a template writes it, and is itself wherever a template asks about it.

    What is made of it alone (a piece, capitals) is marked as it is; what it is joined to has its marks as characters.

    Args:
        text (str): what it says.
        before, behind (str): marks around it.
    """

    def __new__(cls, text, before="", behind=""):
        made = super().__new__(cls, str.__str__(text))
        made._before, made._behind = before, behind
        return made

    def __str__(self):
        return f"{self._before}{str.__str__(self)}{self._behind}"

    def __format__(self, how):
        return f"{self._before}{str.__str__(self):{how}}{self._behind}"

    def __add__(self, other):
        return str(self) + str(other) if isinstance(other, str) else NotImplemented

    def __radd__(self, other):
        return str(other) + str(self) if isinstance(other, str) else NotImplemented

    def __iter__(self):
        return iter(self._all_marked(list(super().__iter__())))

    def _all_marked(self, made):
        return type(self)(made, self._before, self._behind) if isinstance(made, str) else type(made)(map(self._all_marked, made))


def _of_one_text(name):
    method = getattr(str, name)
    return wraps(method)(lambda self, *args, **named: self._all_marked(method(self, *args, **named)))


# What Python makes of one text; not by format and format_map, which a sandbox knows by what they are.
_OF_ONE_TEXT = """
__getitem__ capitalize casefold center expandtabs ljust lower lstrip partition removeprefix removesuffix replace rjust rpartition
rsplit rstrip split splitlines strip swapcase title translate upper zfill
""".split()
for _name in _OF_ONE_TEXT:
    setattr(_Marked, _name, _of_one_text(_name))


def clean(text):
    """One line, single spaces, no private marks: what every field goes through before it is shown."""
    return re.sub(rf"[\s{_ANY_MARK}]+", " ", str(text)).strip()


def places_of_marks(text):
    """A text without the marks of soft tokens, and where they stood.

    Of several marks of one number the last counts; brackets and quotes that close right behind it come before the place.

    Args:
        text (str): as `PromptTemplate.text` gives it with `soft`.

    Returns:
        tuple: str; dict, number -> place in that str.
    """
    parts, places, length = re.split(f"([{_SOFT}-{_LAST}])", text), {}, 0
    for place, part in enumerate(parts):
        if place % 2:
            places[ord(part) - ord(_SOFT)] = length
        else:
            length += len(part)
    plain = "".join(parts[::2])
    return plain, {n: len(plain) - len(plain[place:].lstrip(_CLOSING)) for n, place in places.items()}


def _fields(values):
    """Jinja filter: the fields that have a value, as ``name: value; name: value``; the first, the id, if there is no other."""
    known = {field: value for field, value in values.items() if value}
    named = {field: value for field, value in known.items() if field != next(iter(values))} or known
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


def _names(node, name):
    """Whether a piece of a template is a variable of this name."""
    return isinstance(node, nodes.Name) and node.name == name


@dataclass(frozen=True)
class Behaviour:
    """A shown behaviour, as the Prompter hands it over: item id; raw rating, label and raw time, or None."""

    item: int
    rating: float | None
    label: int | None
    time: int | float | None


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
        self._answers, self._of_nothing = answers, None
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

    @cached_property
    def numbers(self):
        """Numbers of a row that the layout prints, as HistoryFeatures calls them: those of history.<name>, and of the target.

        They take time to work out, so the layout is read to know which it asks for.

        Raises:
            TemplateError: there is no such number, or its name is not written out.
        """
        tree = self._environment.parse(self._texts["prompt_template"])
        if "history" not in meta.find_undeclared_variables(tree):
            named = []
        else:
            named = [self._part(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem)) if _names(node.node, "history")]
            if None in named or len(named) < sum(_names(node, "history") for node in tree.find_all(nodes.Name)):
                raise TemplateError("prompt_template: expected history.<name>, found history used as a whole; write each name out.")
        wrong = [name for name in named if name not in HISTORY_NUMBERS and not same_field(name)]
        if wrong:
            raise TemplateError(
                f"prompt_template: expected history.<name> with a name among {', '.join(HISTORY_NUMBERS)}, same_<item field>_mean, "
                f"_residual and _count, found {wrong[0]!r}."
            )
        parts = (self._part(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem)) if _names(node.node, "target"))
        named += [_OF_TARGET[part] for part in parts if part in _OF_TARGET]
        return tuple(dict.fromkeys(named))

    @staticmethod
    def _part(node):
        """The name in thing.name or thing['name']; None where it is not written out."""
        if isinstance(node, nodes.Getattr):
            return node.attr
        return node.arg.value if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) else None

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
        """Fields and name of an item; one of which its fields say nothing is named by its id."""
        fields = Fields(self._item_fields(item), "item")
        text = clean(self._render("prompt_item", item=fields))
        nameless = self._says_nothing(text, fields)
        if nameless:
            text = f"{self._words['noun']} {next(iter(fields.values()))}"
        return {"text": text, "item": fields, "nameless": nameless}

    def _says_nothing(self, text, fields):
        """Whether prompt_item says of an item what it says where all fields are empty, or has no letter and no digit."""
        if self._of_nothing is None:
            try:
                self._of_nothing = clean(self._render("prompt_item", item=Fields(dict.fromkeys(fields, ""), "item")))
            except TemplateError:  # which is no fault: no item may be like that
                self._of_nothing = ""
        return text == self._of_nothing or not any(character.isalnum() for character in text)

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

    def _behaviour_parts(self, item, rating, label):
        parts = dict(self.item(item))
        if label is not None:
            parts["answer"] = self._answers[0] if label else self._answers[1]
        if rating is not None:
            parts["stars"] = Rating(rating)
            parts["rating"] = clean(self._render("prompt_rating", rating=parts["stars"]))
        return parts

    def text(self, user, target, behaviours, others, numbers=None, soft=(), marked=False):
        """The prompt of one row, without its answer.

        Args:
            user, target (int): internal ids of the user and of the target item.
            behaviours (list of Behaviour): shown, in this order.
            others (Others): the behaviours that are not shown.
            numbers (dict, optional): str -> value, for the names in `numbers`.
            soft (tuple of str): mark which parts of each behaviour (text, answer, rating) by its number, and the target's name by
                0, for `places_of_marks`; none by default.
            marked (bool): mark where these begin and end too, for `document`.

        Returns:
            str: lines, with no white space at the end.

        Raises:
            TemplateError: if the template needs a field or a rating that is not there.
        """
        numbers = numbers or {}
        shown = [
            Parts(self._behaviour(b.item, b.rating, b.label), number=number, **({} if b.time is None else {"time": b.time}))
            for number, b in enumerate(behaviours, start=1)
        ]
        asked = Parts(self.item(target), **{part: numbers[name] for part, name in _OF_TARGET.items() if name in numbers})
        begin, end = (_BEGIN, _END) if marked else ("", "")
        for number, parts in enumerate((asked, *shown) if soft else ()):
            told = {name: parts[name] for name in soft if name in parts}
            parts.update({name: _Marked(words, begin, end + chr(ord(_SOFT) + number)) for name, words in told.items()})
        return self._render(
            "prompt_template",
            **self.profile(user),
            question=self.question,
            system=self.system,
            behaviours=shown,
            target=asked,
            others=others,
            history=Parts(numbers),
        ).strip()

    def check_marks(self, parts, **marks):
        """Check that a prompt says the same whether parts of it are marked or not.

        Args:
            parts (Mapping): what the template lays out, arguments of `text`.
            **marks: FOR_DOCUMENTS or FOR_PLACES.

        Raises:
            TemplateError: it does not, or `text` raises.
        """
        plain, found = self.text(**parts), _MARKS.sub("", self.text(**parts, **marks))
        if found != plain:
            lines = zip_longest(found.split("\n"), plain.split("\n"))
            one, other = next((one, other) for one, other in lines if one != other)
            raise TemplateError(
                f"prompt_template: expected a text that says the same where behaviour.{', .'.join(marks['soft'])} are marked, by "
                f"which the embedded LLM or soft tokens find them, found {one!r} in the place of {other!r}. Compare, count and pad "
                "each by itself, before ~, %, + or a block of {% set %} joins it to other text."
            )

    def document(self, user, target, behaviours, others, label, numbers=None):
        """The prompt of one row with its answer, and what a language model learns there: a text to pretrain on.

        Returns:
            tuple: str; list of (begin, end), the spans of characters that are answers or ratings, in order; dict, number of a
            behaviour, from 1, or 0 for the target -> the first span that is said of it, a place in that list.
        """
        marked = self.text(user, target, behaviours, others, numbers, **FOR_DOCUMENTS)
        joint = "" if marked[-1:].isspace() else " "
        marked += f"{joint}{_BEGIN}{self._answers[0] if label else self._answers[1]}{_END}"
        plain, spans, first, end = "", [], {}, 0
        for span in _SPANS.finditer(marked):
            plain += _MARKS.sub("", marked[end : span.start()])
            first.setdefault(ord(span[2] or _SOFT) - ord(_SOFT), len(spans))
            spans.append((len(plain), len(plain) + len(span[1])))
            plain, end = plain + span[1], span.end()
        return plain, spans, first
