"""The model card of an exported run: README.md of its folder, as the Hugging Face hub reads it (huggingface_hub writes it)."""

from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from recbole_rella.keys import KEYS
from recbole_rella.tables import fenced, markdown

# Our metrics, and what the hub calls them.
_METRICS = {
    "auc": ("AUC", "roc_auc"),
    "logloss": ("LogLoss", "log_loss"),
    "accuracy": ("accuracy", "accuracy"),
    "uauc": ("UAUC", "uauc"),
}


def model_card(run, prompt, answers):
    """The card.

    Args:
        run (Run): finished.
        prompt (str): one of its test rows, as the LLM reads it.
        answers (dict): yes and no -> text of the answer and token_id (int), as an exported prompt has them.

    Returns:
        str: Markdown behind a head of YAML.
    """
    metrics, rows, llm = run.metrics, run.metrics["rows"], run.given["llm"]
    measured = {name: value for name, value in metrics.get("test_exact", {}).items() if name in _METRICS and value is not None}
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["recommendation", "click-through-rate", "recbole", "rella"],
        model_name=f"ReLLa on {run.dataset}",
        eval_results=[_result(run.dataset, *_METRICS[name], value) for name, value in measured.items()] or None,
        **({"base_model": llm} if _is_of_the_hub(llm) else {}),
    )
    yes, no = (f"{answers[name]['token_id']} ({answers[name]['text'].strip()})" for name in ("yes", "no"))
    table = pd.DataFrame([{_METRICS[name][0]: f"{value:.4f}" for name, value in measured.items()}])
    parts = [
        f"# ReLLa on {run.dataset}",
        "A language model as a click-through-rate model ([ReLLa](https://arxiv.org/abs/2308.11131)), tuned with LoRA by "
        f"recbole_rella {metrics['versions']['recbole-rella']}; the adapters are merged into the weights.\n"
        f"P(yes) is the softmax over two tokens after the prompt, {yes} against {no}.",
        "## Data",
        f"{run.dataset}: {rows['train']} training samples of {metrics['shots']} rows, {rows['valid']} validation rows, "
        f"{rows['test']} test rows; seed {metrics['seed']}.",
        *(["## Metrics", "Of the test rows. UAUC: AUC of single users, weighted by their rows.", markdown(table)] * bool(measured)),
        "## Prompt",
        fenced(prompt),
        "## Terms",
        f"The terms of the language model that was tuned ({llm if _is_of_the_hub(llm) else Path(llm).name}), and those of the "
        "data, hold for these weights.",
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _is_of_the_hub(llm):
    """Whether a value of the key llm is a name on the hub; a path of this machine means nothing to others."""
    return llm not in KEYS["llm"].words and not Path(llm).exists()


def _result(dataset, title, kind, value):
    return EvalResult(
        task_type="other",
        task_name="click-through-rate prediction",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=kind,
        metric_name=title,
        metric_value=round(value, 6),
    )
