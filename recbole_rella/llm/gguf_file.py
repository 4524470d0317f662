"""An LLM in one GGUF file (llama.cpp's format): unpacked once into the cache, an ordinary Hugging Face folder from then on.

transformers reads the file: weights dequantized to float32, which holds their values exactly; tokenizer and chat template as the
file has them. A folder takes 4 bytes a weight on disk, whatever the file took.
"""

import contextlib
import copy
import importlib.util
import json
import logging
import re
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_rella.errors import RellaError
from recbole_rella.files import cache_key, file_fingerprint, lock, replacing_folder, write_json
from recbole_rella.llm.weights import TELLING, lacking

logger = logging.getLogger(__name__)

_ORIGIN = "gguf.json"
_MAGIC = b"GGUF"
# Older versions of transformers cut some texts into other tokens than the file says.
_READS_FILES = hasattr(transformers, "GgufConfig")


class GgufError(RellaError):
    """A GGUF file cannot be read."""


def is_gguf(path):
    """Whether a path is that of a GGUF file, by its name."""
    return Path(path).suffix.lower() == ".gguf"


def origin(folder):
    """Names the GGUF file that a folder was unpacked from, str; None for any other folder."""
    made = _made(folder)
    return made and f"gguf {made['file']}"


def _made(folder):
    """What was written beside an unpacked LLM: the hash and the name of its file, the sizes of its own; None for other folders."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((Path(folder) / _ORIGIN).read_text(encoding="utf-8"))
    return None


def unpacked(path, cache_folder):
    """The folder of the LLM in a GGUF file, unpacked now or found in the cache.

    Args:
        path (str or pathlib.Path): the file.
        cache_folder (pathlib.Path): where folders are kept, by the hash of the file.

    Returns:
        pathlib.Path: a Hugging Face checkpoint folder.

    Raises:
        GgufError: the package gguf is missing, transformers is too old or does not read the architecture, or the file is none, or
            one of several.
    """
    path = Path(path).expanduser().resolve()
    _check(path)
    identity = file_fingerprint(path)
    folder = Path(cache_folder) / f"gguf-{cache_key(identity)}"
    with lock(folder):  # of two runs that need the same one, the second waits for the first
        if _is_whole(folder):
            logger.info("The LLM of %s was unpacked earlier: [%s]", path.name, folder)
        else:
            _unpack(path, identity, folder)
    return folder


def _check(path):
    if not _READS_FILES:
        raise GgufError(
            f"llm: expected a version of transformers that reads {path.name} as it is (5.24 does), found "
            f"{transformers.__version__}: pip install --upgrade transformers"
        )
    if importlib.util.find_spec("gguf") is None:
        raise GgufError(f"llm: expected the package gguf to read {path.name}, found none: pip install 'recbole_rella[gguf]'")
    part = re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name)
    if part:
        raise GgufError(
            f"llm: expected one GGUF file, found one of several parts ({path.name}), which transformers cannot read. Join them "
            "with llama.cpp's `llama-gguf-split --merge`."
        )
    with open(path, "rb") as file:
        begins = file.read(len(_MAGIC))
    if begins != _MAGIC:
        raise GgufError(f"llm: expected a GGUF file, found {path}, which begins with {begins!r}. Was its download interrupted?")


def _is_whole(folder):
    """Whether a folder has all files that were written, in their sizes."""
    made = _made(folder)
    if made is None:
        if folder.exists():
            logger.warning("The unpacked LLM in [%s] is damaged and is made again.", folder)
        return False
    lost = [name for name, size in made["sizes"].items() if not (folder / name).is_file() or (folder / name).stat().st_size != size]
    if lost:
        logger.warning("The unpacked LLM in [%s] is damaged (%s) and is made again.", folder, ", ".join(lost))
    return not lost


def _with_whole_tokens(tokenizer, path):
    """The tokenizer, for which what the file calls a token of its own is one: transformers knows some families' by name alone.

    Else the marks of a chat format, say, would be tokenized letter by letter.
    """
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(path).fields
    words, kinds = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if words is None or kinds is None:
        return tokenizer
    special, known = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}, tokenizer.get_vocab()
    tokenizer.add_tokens(
        [
            AddedToken(word, special=special[kind], normalized=False)
            for word, kind in zip(words.contents(), kinds.contents())
            if kind in special and word in known  # another one would get a new id
        ]
    )
    return tokenizer


def _plain(model):
    """The same LLM as one that no quantization is known of, on the same weights: transformers saves no other."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _unpack(path, identity, folder):
    logger.info("Unpacking the LLM of %s (%.0f MB), which takes a while.", path.name, path.stat().st_size / 1e6)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    try:
        tokenizer = _with_whole_tokens(AutoTokenizer.from_pretrained(**where), path)
        model, found = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=transformers.GgufConfig(dequantize=True), dtype=torch.float32, **TELLING
        )
        lack, model = lacking(model, found), _plain(model)
    except Exception as error:  # of a damaged file and of an unknown architecture alike, in many ways
        raise GgufError(
            f"llm: expected a GGUF file of an architecture that transformers reads, found {path}, which cannot be loaded "
            f"({type(error).__name__}: {error}). Download it again, or give the Hugging Face checkpoint that it was made of."
        ) from error
    if lack:
        raise GgufError(
            f"llm: expected a GGUF file with all weights of its LLM, found {path} with {lack}. Download it again, or give the "
            "Hugging Face checkpoint that it was made of."
        )
    with replacing_folder(folder, own=True) as temporary:  # in the cache
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        sizes = {file.name: file.stat().st_size for file in sorted(Path(temporary).iterdir())}
        write_json(Path(temporary) / _ORIGIN, {"file": identity, "name": path.name, "sizes": sizes})
