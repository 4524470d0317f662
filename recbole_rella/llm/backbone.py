"""The LLM under ReLLa: load any Hugging Face causal LM, put LoRA adapters on it, save and load them in PEFT's format."""

import json
import logging
import re
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from recbole_rella import processes
from recbole_rella.errors import RellaError
from recbole_rella.files import folder_fingerprint, replacing, write_text
from recbole_rella.key_rules import ALL_LINEAR
from recbole_rella.llm.gguf_file import origin
from recbole_rella.llm.hub import commit_of
from recbole_rella.llm.products import bfloat16_pays
from recbole_rella.llm.weights import TELLING, lacking

logger = logging.getLogger(__name__)

_AGAIN = "If it is one, its files are damaged, or of several versions: download or save them again"
# What to do where a part of an LLM cannot be loaded; transformers asks for tiktoken where sentencepiece is what is missing.
_REMEDY = {
    "configuration": f"{_AGAIN}.",
    "weights": f"{_AGAIN}; of Git LFS, get the files that its pointers stand for (git lfs pull).",
    "tokenizer": "A tokenizer.model alone needs: pip install sentencepiece protobuf.",
}


class LLMError(RellaError):
    """An LLM, or a part of it, cannot be loaded or used as configured."""


def automatic_dtype(device, in_half=False):
    """The dtype that suits a device: bfloat16 where the hardware computes in it, else float32.

    GPUs before NVIDIA's Ampere (T4, V100) have no bfloat16, and PyTorch emulates it slowly. They get float32 and not float16, whose
    range the hidden states of many LLMs exceed. CPUs that gain by it compute those LLMs in it whose weights have no more digits.

    Args:
        device (torch.device): where the LLM computes.
        in_half (bool): whether its weights are stored in half precision, or less.

    Returns:
        torch.dtype: bfloat16 or float32.
    """
    if device.type == "cpu":
        return torch.bfloat16 if in_half and bfloat16_pays() else torch.float32
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


class Backbone:
    """A causal LM by hub name or folder. Configuration, tokenizer and weights are read when first asked for.

    Args:
        path (str): hub name or folder.
        device (torch.device): where the weights go.
        dtype (str): auto (see `automatic_dtype`) or a torch dtype's name.
        quantization (str or None): 8bit or 4bit, through bitsandbytes.
        attn_implementation (str or None), trust_remote_code (bool): as in ``from_pretrained``.
        shard (bool): divide the weights among the processes of this run (see `processes.divide`).
        revision (str, optional): branch, tag or commit of a hub model; the main branch by default.

    Raises:
        LLMError: there is no such LLM, or it cannot be loaded so.
    """

    def __init__(
        self,
        path,
        device,
        dtype="auto",
        quantization=None,
        attn_implementation=None,
        trust_remote_code=False,
        shard=False,
        revision=None,
    ):
        self.path, self.device, self.quantization = str(path), torch.device(device), quantization
        self._revision = revision
        self.is_sharded = processes.count() > 1 and (shard or processes.launched_with_fsdp())
        self._dtype = dtype
        self._attention = attn_implementation
        self._trust = trust_remote_code
        if quantization and self.device.type != "cuda":
            raise LLMError(
                f"llm_quantization: expected none without a CUDA device, found {quantization!r}; bitsandbytes needs one."
            )

    def __getstate__(self):
        """Without the weights: workers of a DataLoader make prompts, and never ask for them."""
        return {name: value for name, value in vars(self).items() if name != "model"}

    @cached_property
    def folder(self):
        """The folder of the LLM, or None for one of the hub."""
        folder = Path(self.path).expanduser()
        return folder if folder.is_dir() else None

    @cached_property
    def commit(self):
        """The commit of a hub model, from which all of its files are loaded; None for a folder, or where none is known."""
        return None if self.folder else commit_of(self.path, self._revision)

    def _load(self, loader, what, **arguments):
        path = str(self.folder or self.path)
        revision = {} if self.folder else {"revision": self.commit or self._revision or "main"}
        try:
            return loader.from_pretrained(path, trust_remote_code=self._trust, **revision, **arguments)
        except (MemoryError, torch.OutOfMemoryError):  # no fault of the LLM's
            raise
        except Exception as error:  # files that are damaged, and code that comes with an LLM, fail in many ways
            raise LLMError(
                f"llm: expected a Hugging Face causal LM, found {self.path!r}, whose {what} cannot be loaded "
                f"({type(error).__name__}: {error}). {_REMEDY[what]}"
            ) from error

    @cached_property
    def config(self):
        """The transformers configuration."""
        return self._load(AutoConfig, "configuration")

    @cached_property
    def dtype(self):
        """The torch.dtype that its weights are held in, unless they are quantized."""
        if self._dtype != "auto":
            return getattr(torch, self._dtype)
        # A GGUF file was unpacked into float32, whatever it had.
        stored = self.config.dtype or self.config.get_text_config().dtype
        is_gguf = self.folder is not None and origin(self.folder) is not None
        return automatic_dtype(self.device, stored in (torch.bfloat16, torch.float16) or is_gguf)

    @cached_property
    def tokenizer(self):
        """The LLM's own tokenizer."""
        return self._load(AutoTokenizer, "tokenizer")

    @cached_property
    def model(self):
        """The LLM with its weights, frozen, on its device, in evaluation mode."""
        arguments = {"dtype": self.dtype}
        if self._attention:
            arguments["attn_implementation"] = self._attention
        if self.quantization:
            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantization == "8bit",
                load_in_4bit=self.quantization == "4bit",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=self.dtype,
            )
            arguments["device_map"] = {"": self.device}
        model, found = self._load(AutoModelForCausalLM, "weights", **TELLING, **arguments)
        if lack := lacking(model, found):
            raise LLMError(
                f"llm: expected a Hugging Face causal LM with all weights of its config.json, found {self.path!r} with {lack}. "
                f"{_REMEDY['weights']}"
            )
        model.requires_grad_(False).eval()
        if self.is_sharded:
            return processes.divide(model, self.device)
        return model if self.quantization else model.to(self.device)

    @cached_property
    def identity(self):
        """Names the weights: the hash of a folder's files or of the GGUF file that it comes from, or name and commit on the hub.

        Returns:
            str or None: None where the version of a hub model cannot be known. Nothing of it is then kept for other runs.
        """
        if self.folder:
            return origin(self.folder) or folder_fingerprint(self.folder)
        if self.commit is None:
            logger.warning(
                "llm: no commit of %r can be found, so what depends on it (item vectors, prompts) is made anew in every run. "
                "Set llm_revision to a commit, or give a folder.",
                self.path,
            )
            return None
        return f"{self.path}@{self.commit}"

    @property
    def vocabulary(self):
        """Token ids are below this, those of the LLM's embedding and those of its tokenizer, of which either may have more."""
        return max(self.config.get_text_config().vocab_size, len(self.tokenizer))

    @property
    def max_positions(self):
        """How many tokens a prompt may have by the LLM's positions, or None where it says nothing."""
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(value := getattr(self.config.get_text_config(), name, None), int):
                return value
        return None


def add_lora(model, r, alpha, dropout, target_modules, gradient_checkpointing=False, more=MappingProxyType({})):
    """Put LoRA adapters on an LLM (PEFT).

    A quantized LLM needs nothing more (QLoRA): it is frozen, gradients pass through its dequantized weights, and its norms compute
    in float32 whatever they are stored in. PEFT's preparation for such LLMs would also store embeddings, head and norms in float32:
    that is for float16, and bfloat16 has float32's range.

    Args:
        model (transformers.PreTrainedModel): frozen.
        r (int), alpha (float), dropout (float): LoRA's rank, scale and dropout.
        target_modules (list of str): ends of module names; all-linear alone for all linear layers but the head
            (experts of a mixture are none).
        gradient_checkpointing (bool): recompute activations in the backward pass.
        more (Mapping): other arguments of peft.LoraConfig (key_rules.LORA).

    Returns:
        peft.PeftModel: only the adapters are trainable, in float32.

    Raises:
        LLMError: a target module does not exist, is no linear layer, or is a head whose weights are those of the input; lists the
            linear layers that there are. Or no layer is left for adapters.
    """
    names = [name for name, _ in model.named_modules()]
    decoder = next((name for name in names if model.get_submodule(name) is model.get_decoder()), "")
    linear = sorted({name.rpartition(".")[2] for name in names if name.startswith(decoder) and _is_linear(model, name)})
    targets = linear if list(target_modules) == [ALL_LINEAR] else list(target_modules)
    missing = [t for t in targets if not any(name == t or name.endswith("." + t) for name in names)]
    if missing:
        raise LLMError(
            f"lora_target_modules: expected modules of {type(model).__name__}, found {missing}, which it does not have. "
            f"Its linear layers are {linear}."
        )
    found = [name for name in names if any(name == t or name.endswith("." + t) for t in targets)]
    _check_targets(model, found, linear)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    targets = _within(decoder, found, _head(model, names), targets)
    own = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": targets}
    try:
        return get_peft_model(model, LoraConfig(**own, bias="none", task_type="CAUSAL_LM", **more))
    except ValueError as error:  # in PEFT's words: which of its arguments leaves no layer
        found = f"expected arguments of LoraConfig that fit {type(model).__name__}, found {dict(more)}"
        raise LLMError(f"lora: {found}: {error}") from error


def _is_linear(model, name):
    """Whether a module is a linear layer that is not the head, of PyTorch, quantized, or as GPT-2 has them."""
    module = model.get_submodule(name)
    return isinstance(module, (torch.nn.Linear, Conv1D)) and module is not model.get_output_embeddings()


def _head(model, names):
    """The name of the module that makes logits of hidden states."""
    return next((name for name in names if model.get_submodule(name) is model.get_output_embeddings()), None)


def _check_targets(model, found, linear):
    """Adapters of other modules than linear layers could not be merged, nor could those of a head that is the input's embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and head.weight is embedding.weight
    for name in found:
        module = model.get_submodule(name)
        if isinstance(module, torch.nn.Embedding) or (module is head and is_tied):
            why = "shares its weights with the input" if module is head else "is no linear layer"
            raise LLMError(
                f"lora_target_modules: expected linear layers of {type(model).__name__}, found {name}, which {why}. "
                f"Its linear layers are {linear}."
            )


def _within(decoder, found, head, targets):
    """Target modules as PEFT takes them; of an LLM that sees pictures and has such modules elsewhere, those of decoder and head."""
    if all(name == head or name.startswith(decoder) for name in found):
        return targets
    inside = rf"{re.escape(decoder)}\.(.*\.)?({'|'.join(map(re.escape, targets))})"
    return f"{inside}|{re.escape(head)}" if head in found else inside


@contextmanager
def without_adapters(model):
    """Within this context an LLM is what it was before adapters were put into its layers (PEFT does that in place).

    Args:
        model (torch.nn.Module): an LLM, with or without adapters.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer) and not module.disable_adapters]
    trained = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for layer in layers:
            layer.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def save_adapter(model, folder):
    """Save the adapters in PEFT's standard format; each file is whole or as it was (law 6).

    Args:
        model (peft.PeftModel): with one adapter.
        folder (str or pathlib.Path): gets adapter_config.json and adapter_model.safetensors.
    """
    folder = Path(folder)
    # The state of the whole model, PEFT's default, would first gather what is divided among processes, in this one alone.
    trained = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    state = get_peft_model_state_dict(model, state_dict=trained)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    settings = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in model.peft_config[model.active_adapter].to_dict().items()
    }
    settings["inference_mode"] = True
    write_text(folder / "adapter_config.json", json.dumps(settings, indent=2, default=str))


def _in_short(error):
    """The first two lines of a message: PyTorch's have one for each weight that does not fit."""
    return " ".join(" ".join(str(error).splitlines()[:2]).split())


def _read_adapter(path):
    if not path.is_file():
        raise LLMError(f"Expected a saved adapter at {path}, found none.")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise LLMError(
            f"Expected a saved adapter at {path}, found a damaged file ({error}): copy it again, or tune again."
        ) from error


def freeze_adapter(model):
    """Keep the adapters of an LLM as they are.

    Raises:
        LLMError: they were never tuned: B is 0, so that no gradient would reach what is put into them.
    """
    adapters = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    for parameter in adapters.values():
        parameter.requires_grad_(False)
    if not any(parameter.any() for name, parameter in adapters.items() if ".lora_B" in name):
        raise LLMError("adapter_from: expected adapters that were tuned, found some whose B is 0, as before any training.")


def load_adapter(model, folder):
    """Load adapters that `save_adapter` (or PEFT) saved into a model that has such adapters.

    Raises:
        LLMError: the file is not there, is damaged, or does not fit the model.
    """
    path = Path(folder) / "adapter_model.safetensors"
    saved = processes.from_first(lambda: _read_adapter(path))
    try:
        result = set_peft_model_state_dict(model, saved)
        missing = [name for name in getattr(result, "missing_keys", []) if "lora_" in name]
        others = missing or result.unexpected_keys
        found = f"missing {missing[:3]}, unexpected {list(result.unexpected_keys)[:3]}" if others else None
    except (KeyError, RuntimeError, ValueError) as error:  # of another rank, say
        found = _in_short(error)
    if found:
        raise LLMError(
            f"{path}: expected the adapters of this LLM and these lora_* settings, found others ({found}). "
            "Set llm and lora_* as they were when these adapters were tuned."
        )


def with_adapter(model, folder):
    """Put the adapters of a folder on an LLM; the folder says what they are (PEFT).

    Args:
        model (transformers.PreTrainedModel), folder (str or pathlib.Path): where `save_adapter` (or PEFT) saved them.

    Returns:
        peft.PeftModel: in evaluation mode, frozen.

    Raises:
        LLMError: they are not there, are damaged, or do not fit the model.
    """
    try:
        llm = PeftModel.from_pretrained(model, folder)
    except Exception as error:  # of both files, in many ways
        raise LLMError(
            f"Expected saved adapters of this LLM in {folder}, found none that can be loaded ({type(error).__name__}: "
            f"{_in_short(error)}). Copy the folder again, or give the LLM that they were tuned with."
        ) from error
    load_adapter(llm, folder)  # PEFT itself only warns of those that are missing
    return llm.eval()
