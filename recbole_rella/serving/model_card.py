"""The model card of an exported run: README.md of its folder, as the Hugging Face hub reads it (huggingface_hub writes it)."""

from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from recbole_rella.metrics import TITLES
from recbole_rella.tables import fenced, markdown

# What the hub calls our metrics.
_OF_THE_HUB = {"auc": "roc_auc", "logloss": "log_loss", "accuracy": "accuracy", "uauc": "uauc"}


def model_card(run, base_model, prompt, answers):
    """The card.

    Args:
        run (Run): finished.
        base_model (str or None): the name of its LLM on the hub; None for a folder or a file of this machine.
        prompt (str): that of one of its rows, as the LLM reads it.
        answers (dict): yes and no -> text of the answer and token_id (int), as an exported prompt has them.

    Returns:
        str: Markdown behind a head of YAML.
    """
    metrics, rows, llm = run.metrics, run.metrics["rows"], run.given["llm"]
    measured = {name: value for name, value in metrics.get("test_exact", {}).items() if name in TITLES and value is not None}
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["recommendation", "click-through-rate", "recbole", "rella"],
        model_name=f"ReLLa on {run.dataset}",
        eval_results=[_result(run.dataset, name, value) for name, value in measured.items()] or None,
        base_model=base_model,
    )
    yes, no = (f"{answers[name]['token_id']} ({answers[name]['text'].strip()})" for name in ("yes", "no"))
    table = pd.DataFrame([{TITLES[name]: f"{value:.4f}" for name, value in measured.items()}])
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
        f"The terms of the language model that was tuned ({base_model or Path(llm).name}), and those of the "
        "data, hold for these weights.",
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _result(dataset, name, value):
    return EvalResult(
        task_type="other",
        task_name="click-through-rate prediction",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=_OF_THE_HUB[name],
        metric_name=TITLES[name],
        metric_value=round(value, 6),
    )
