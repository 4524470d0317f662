"""What is said of each key of ours: default, type and comment, as they stand in properties/model.

The list of keys in --help and docs/keys.md are made of it; ``python docs/write_keys.py`` writes the latter.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import yaml

from recbole_rella.keys import AFFECTS, KEYS
from recbole_rella.shipped import properties_folder

# The models of ours, in the order of their keys: each has a file of defaults in properties/model.
MODELS = ("ReLLa", "SIM", "Bias", "Tree")
# `# (type) comment`, at the end of the key's line or on a line of its own before it.
_COMMENT = re.compile(r"#\s*\(([a-z ]+)\)\s*(.*)$")


@dataclass(frozen=True)
class KeyText:
    """What the file of defaults says of a key.

    Attributes:
        name (str): the key.
        section (str): the heading that it stands under.
        default: its value.
        kind (str): str, int, float, bool, dict or list of str.
        comment (str): a sentence.
    """

    name: str
    section: str
    default: object
    kind: str
    comment: str

    @property
    def holds(self):
        """What the key may hold, in the words of its rule."""
        return KEYS[self.name].rule(object()) if self.name in KEYS else self.kind


@lru_cache
def key_texts():
    """All keys of ours, in the order of the file.

    Returns:
        dict: name -> KeyText.
    """
    found = {}
    for model in MODELS:
        text, section, above = _text(model), "", None
        defaults = yaml.safe_load(text)
        for line in text.splitlines():
            comment = _COMMENT.search(line)
            if line.startswith("#") and not comment:
                section, above = line.lstrip("# "), None
            elif line.startswith("#"):
                above = comment
            elif comment or above:
                kind, words = (comment or above).groups()
                name = line.partition(":")[0]
                found[name], above = KeyText(name, section, defaults[name], kind, words), None
    return found


def _text(model):
    return (properties_folder() / "model" / f"{model}.yaml").read_text(encoding="utf-8")


def recbole_defaults(model="ReLLa"):
    """Keys that a model's file gives another default: RecBole's own, and for others than ReLLa those of ReLLa.

    Returns:
        dict: name -> value.
    """
    defaults, own = yaml.safe_load(_text(model)), key_texts()
    return {name: value for name, value in defaults.items() if name not in own or value != own[name].default}


def _sections():
    """Heading -> its keys."""
    found = {}
    for text in key_texts().values():
        found.setdefault(text.section, []).append(text)
    return found


def _written(value):
    """A value as one would write it on the command line; nothing is None."""
    return value if isinstance(value, str) else str(value)


def help_text():
    """The list of all keys, for --help."""
    lines = []
    for section, texts in _sections().items():
        lines += ["", f"{section}:", ""]
        lines += [f"  --{text.name}={_written(text.default)}\n      {text.comment}" for text in texts]
    return "\n".join(lines).lstrip("\n")


def _cell(text):
    return str(text).replace("|", "\\|")


def markdown():
    """The page docs/keys.md."""
    lines = [
        "# Keys",
        "",
        "<!-- Made by `python docs/write_keys.py` from recbole_rella/keys.py and properties/model. -->",
        "",
        "Every key works on the command line (`--key=value`), in YAML files (`--config_files`) and in dictionaries",
        "(`config_dict`); the command line wins over dictionaries, and dictionaries over files. `model.key` (`--DIN.epochs=4`)",
        "holds for one model alone.",
        "",
        "What a key affects: " + "; ".join(f"*{word}*: {what}" for word, what in AFFECTS.items()) + ".",
    ]
    for section, texts in _sections().items():
        lines += ["", f"## {section}", "", "| key | default | holds | meaning | affects |", "|---|---|---|---|---|"]
        for text in texts:
            affects = ", ".join(KEYS[text.name].affects)
            lines.append(
                f"| `{text.name}` | `{_cell(_written(text.default))}` | {_cell(text.holds)} | {_cell(text.comment)} | {affects} |"
            )
    lines += ["", "## RecBole's keys", "", "They keep RecBole's meaning."]
    for model in filter(recbole_defaults, MODELS):
        lines += ["", f"These have another default with {model}:", "", "| key | default |", "|---|---|"]
        lines += [f"| `{name}` | `{_written(value)}` |" for name, value in recbole_defaults(model).items()]
    return "\n".join(lines) + "\n"
