r"""
ReLLa
################################################
Reference:
    Jianghao Lin et al. "ReLLa: Retrieval-enhanced Large Language Models for Lifelong Sequential Behavior Comprehension in
    Recommendation." in WWW 2024.

A large language model as a click-through-rate model: it reads the prompt of a row, and the score is P(yes), the two-way
softmax of its logits for the two answers.
"""

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType, ModelType

from recbole_rella.data.rellax import make_rellax
from recbole_rella.data.transform import PromptTransform, with_prompts
from recbole_rella.engines import make_engine
from recbole_rella.llm.backbone import add_lora, freeze_adapter, load_adapter, save_adapter
from recbole_rella.llm.scoring import answer_logits, p_yes, unpad
from recbole_rella.rows.fields import PROMPT_IDS, PROMPT_LENGTH, PROMPT_VECTORS, ROW_ID
from recbole_rella.run_folder import ADAPTER, read_run


class ReLLa(AbstractRecommender):
    """An LLM with LoRA adapters that scores rows by P(yes).

    Args:
        config (recbole.config.Config): with the keys of properties/model/ReLLa.yaml.
        dataset (ReLLaDataset): a part of a built data set, which brings prompts and LLM.
    """

    type = ModelType.CONTEXT
    input_type = InputType.POINTWISE
    properties_files = ("ReLLa.yaml",)
    transform = PromptTransform

    def __init__(self, config, dataset):
        super().__init__()
        self.LABEL, self.ITEM_ID = config["LABEL_FIELD"], config["ITEM_ID_FIELD"]
        self.device = config["device"]
        self.assembly = assembly = dataset.assembly
        self.prompter, self.answer_ids = assembly.prompter, assembly.answer_ids
        self._train_tokens, self._eval_tokens = config["train_micro_tokens"], config["eval_micro_tokens"]
        self._show_progress = config["show_progress"]
        self._llm_name = assembly.backbone.path
        self.llm = add_lora(
            assembly.backbone.model,
            config["lora_r"],
            config["lora_alpha"],
            config["lora_dropout"],
            config["lora_target_modules"],
            config["llm_gradient_checkpointing"],
            config["lora"],
        )
        if config["adapter_from"]:
            load_adapter(self.llm, read_run(config["adapter_from"]).folder / ADAPTER)
            freeze_adapter(self.llm)
        self.rellax = make_rellax(config, self.llm, assembly, dataset.inter_feat[ROW_ID].numpy())
        tokenizer, longest = assembly.backbone.tokenizer, assembly.prompter.max_tokens
        self.engine = make_engine(config, self.llm, tokenizer, self.answer_ids, longest)

    def prompted(self, interaction):
        """The interaction with the prompts of its rows (PromptedRows), there already unless RecBole sampled other items."""
        return with_prompts(self.prompter, interaction, self.ITEM_ID)

    def _numbered(self, interaction):
        """Context in which the LLM takes the prompts of an interaction, soft tokens included; yields their token ids."""
        ids = interaction[PROMPT_IDS]
        if self.rellax is None:
            return nullcontext(ids)
        return self.rellax.numbered(ids, interaction[PROMPT_VECTORS] if PROMPT_VECTORS in interaction else None)

    def losses(self, interaction, shared=False):
        """Cross-entropy of the answer, at the answer position alone and over the whole vocabulary (paper, section 3.3).

        One forward pass at a time, of at most train_micro_tokens tokens, shared beginnings counted once, padding included: with a
        backward pass after each, the activations of no more than one are held.

        Args:
            interaction (Interaction): n rows with labels.
            shared (bool): whether the processes of this run, all of which call this, share the forward passes.

        Yields:
            torch.Tensor: what the rows of a forward pass add to the mean over all n, float32 [].
        """
        interaction = self.prompted(interaction)
        yes, no = self.answer_ids
        answers = torch.where(interaction[self.LABEL].to(self.device) > 0.5, yes, no)
        with self._numbered(interaction) as ids:
            for places, logits in answer_logits(self.llm, ids, interaction[PROMPT_LENGTH], self._train_tokens, shared=shared):
                yield F.cross_entropy(logits, answers[places], reduction="sum") / len(interaction)

    def calculate_loss(self, interaction):
        """RecBole's hook: the sum of `losses`, the mean over the rows.

        Args:
            interaction (Interaction): n rows with labels.

        Returns:
            torch.Tensor: float32 [].
        """
        return sum(self.losses(interaction))

    @torch.no_grad()
    def predict(self, interaction):
        """P(yes) of every row.

        Args:
            interaction (Interaction): n rows with row_id and item; other items than the rows' own are candidates for
                which prompts are made here.

        Returns:
            torch.Tensor: float32 [n], in [0, 1].
        """
        interaction = self.prompted(interaction)
        if self.engine is not None:
            ids = unpad(interaction[PROMPT_IDS], interaction[PROMPT_LENGTH])
            return torch.from_numpy(self.engine.p_yes(ids, self.rellax)).to(self.device)
        with self._numbered(interaction) as ids:
            of = self.llm, ids, interaction[PROMPT_LENGTH], self.answer_ids, self._eval_tokens, self.device
            return p_yes(*of, show_progress=self._show_progress)

    def save_adapter(self, folder):
        """Save what was trained, and only that: adapters in PEFT's format, projectors and gates of ReLLaX beside them."""
        save_adapter(self.llm, folder)
        if self.rellax is not None:
            self.rellax.save(folder)

    def load_adapter(self, folder):
        """Load what `save_adapter` saved."""
        load_adapter(self.llm, folder)
        if self.rellax is not None:
            self.rellax.load(folder)

    def parameter_counts(self):
        """Number of parameters.

        Returns:
            dict: trainable (int), all (int).
        """
        counts = {p: p.numel() for p in self.parameters()}
        return {"trainable": sum(n for p, n in counts.items() if p.requires_grad), "all": sum(counts.values())}

    def __str__(self):
        """A few lines; the modules of an LLM would fill pages."""
        counts = self.parameter_counts()
        yes, no = self.prompter.tokenizer.tokenizer.convert_ids_to_tokens(list(self.answer_ids))
        return (
            f"ReLLa over {type(self.llm.get_base_model()).__name__} [{self._llm_name}]\n"
            f"answer tokens: {yes!r}, {no!r}\n"
            f"parameters: {counts['trainable']} trainable of {counts['all']}"
        )

    def row_ids(self, interaction):
        """The row_ids of an interaction, for messages."""
        return np.unique(interaction[ROW_ID].cpu().numpy()).tolist()
