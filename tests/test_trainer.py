"""Micro-batches, resuming, and what happens when something goes wrong in the middle."""

import errno
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import WandbLogger, get_model, get_trainer, init_seed
from safetensors.torch import load_file

from recbole_rella import checkpoint, run_recbole_rella
from recbole_rella.model.context_aware_recommender.rella import ReLLa
from recbole_rella.run_folder import RunError
from recbole_rella.trainer import ReLLaTrainer


def make(name, settings, **more):
    config = Config(model="ReLLa", dataset=name, config_dict={**settings, **more})
    init_seed(config["seed"], config["reproducibility"])
    loaders = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model("ReLLa")(config, loaders[0]._dataset)
    return config, model, get_trainer(config["MODEL_TYPE"], "ReLLa")(config, model), loaders


def runs():
    return sorted(Path("saved").glob("ReLLa-*"), key=lambda run: run.stat().st_ctime_ns)


@pytest.mark.parametrize("budget", [1, 150, 333])
def test_micro_batches_give_the_gradient_of_the_whole_batch(budget, movies, llms):
    name, tiny = movies
    config, model, trainer, (train_data, *_) = make(name, tiny, llm=llms("llama"), lora_dropout=0.0, train_micro_tokens=10**6)
    with torch.no_grad():  # B is zero at first, which would leave A without a gradient
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    batch = next(iter(train_data))
    model.calculate_loss(batch).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    whole = {n: p.grad.clone() for n, p in trained.items()}
    model.zero_grad()
    model._train_tokens = budget
    parts = 0
    for loss in model.losses(batch):
        loss.backward()
        parts += 1
    assert parts > 1
    assert all(grad.abs().sum() > 0 for grad in whole.values())
    for name_, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, whole[name_], rtol=1e-4, atol=1e-6)


def test_the_trainer_steps_like_plain_pytorch(movies, llms):
    """RecBole's loop with our hooks = AdamW, linear schedule with warm-up and clipping, written out."""
    name, tiny = movies
    more = {"llm": llms("llama"), "lora_dropout": 0.0, "shuffle": False, "train_micro_tokens": 200, "learning_rate": 0.01}
    config, model, trainer, (train_data, valid_data, _) = make(name, tiny, **more)
    trainer.fit(train_data, valid_data, saved=False)
    _, plain, _, (batches, *_) = make(name, tiny, **more)
    trained = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    steps, plain_losses = len(batches), []
    warmup = int(steps * 0.1)
    plain.train()
    for step, batch in enumerate(batches):
        factor = step / max(1, warmup) if step < warmup else (steps - step) / max(1, steps - warmup)
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        optimizer.zero_grad()
        loss = plain.calculate_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        plain_losses.append(loss.item())
    assert trainer.train_loss_dict[0] == pytest.approx(sum(plain_losses), rel=1e-5)
    for ours, theirs in zip((p for p in model.parameters() if p.requires_grad), trained):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_only_adapters_are_trained(movies):
    name, tiny = movies
    _, model, trainer, (train_data, valid_data, _) = make(name, tiny)
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer.fit(train_data, valid_data, saved=False)
    changed = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad} and all("lora_" in n for n in changed)
    in_optimizer = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert in_optimizer == model.parameter_counts()["trainable"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (7, 26)), 35, 60])
def test_a_resumed_run_equals_an_uninterrupted_one(stop_after, movies, monkeypatch):
    """Stopped in the first steps, in the middle of an epoch, in a later one, and after training."""
    name, tiny = movies
    tiny = {**tiny, "epochs": 2, "lora_dropout": 0.3, "checkpoint_minutes": 0, "learning_rate": 0.02}
    expected = run_recbole_rella("ReLLa", name, config_dict=tiny)
    steps = 0
    after_step = ReLLaTrainer._after_step

    def stopping(trainer):
        nonlocal steps
        after_step(trainer)
        steps += 1
        if steps == stop_after:
            raise Interrupted

    monkeypatch.setattr(ReLLaTrainer, "_after_step", stopping)
    try:
        run_recbole_rella("ReLLa", name, config_dict=tiny)
        assert stop_after > steps
    except Interrupted:
        assert not (runs()[-1] / "metrics.json").exists()
    monkeypatch.setattr(ReLLaTrainer, "_after_step", after_step)
    whole, interrupted = runs()
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "resume_from": str(interrupted)})
    assert result == expected and runs() == [whole, interrupted]
    assert (whole / "test_predictions.csv").read_text() == (interrupted / "test_predictions.csv").read_text()
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (whole, interrupted))
    assert first["best_epoch"] == second["best_epoch"] and first["valid"] == second["valid"]


def test_a_nan_stops_with_the_rows_of_its_batch(movies, monkeypatch):
    name, tiny = movies
    _, model, trainer, (train_data, valid_data, _) = make(name, tiny)
    losses = model.losses
    monkeypatch.setattr(model, "losses", lambda *batch, **more: (loss * float("nan") for loss in losses(*batch, **more)))
    with pytest.raises(ValueError, match=r"Training loss is nan in epoch 0; the rows of this batch are \[\d+, \d+"):
        trainer.fit(train_data, valid_data, saved=False)


def test_a_full_disk_leaves_the_last_good_adapter(movies, monkeypatch):
    name, tiny = movies
    config, model, trainer, (train_data, valid_data, test_data) = make(name, tiny)
    trainer.fit(train_data, valid_data)
    adapter = Path(trainer.saved_model_file)
    good = load_file(adapter / "adapter_model.safetensors")
    scores = trainer.evaluate(test_data)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recbole_rella.llm.backbone.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        trainer._save_checkpoint(1)
    left = load_file(adapter / "adapter_model.safetensors")
    assert all(torch.equal(good[key], left[key]) for key in good)
    assert sorted(p.name for p in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert trainer.evaluate(test_data) == scores


def test_early_stopping_and_zero_shot(movies, llms):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": llms("llama"), "epochs": 0})
    (run,) = runs()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["best_epoch"] is None and metrics["seconds"]["training"] == 0
    assert result["best_valid_score"] == result["best_valid_result"]["auc"] > 0
    # Zero-shot is the plain LLM.
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all((tensor == 0).all() for key, tensor in weights.items() if "lora_B" in key)
    table = pd.read_csv(run / "test_predictions.csv")
    assert np.isfinite(table["score"]).all() and table["score"].between(0, 1).all()


def test_prompts_over_the_budget_are_counted(movies, llms, caplog):
    name, tiny = movies
    _, _, trainer, (train_data, valid_data, _) = make(name, tiny, llm=llms("llama"), max_prompt_tokens=110)
    with caplog.at_level("INFO"):
        trainer.fit(train_data, valid_data, saved=False)
    assert "prompts of training were over max_prompt_tokens" in caplog.text
    assert "prompts of evaluation were over max_prompt_tokens" in caplog.text


def test_ctrl_c_waits_for_the_end_of_a_step_saves_once_and_resumes(movies, monkeypatch):
    """The state that is saved is that of a whole step: the run ends with the scores that it would have had."""
    name, tiny = movies
    settings = {**tiny, "epochs": 2, "learning_rate": 0.02, "checkpoint_minutes": 60}
    whole = run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "whole"})
    saved, steps, losses = [], [], ReLLa.losses

    def interrupted(self, interaction, shared=False):
        steps.append(1)
        for number, loss in enumerate(losses(self, interaction, shared)):
            if len(steps) == 4 and not number:
                os.kill(os.getpid(), signal.SIGINT)  # in the middle of a step
            yield loss

    save, before = ReLLaTrainer._save_state, signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ReLLa, "losses", interrupted)
        patch.setattr(ReLLaTrainer, "_save_state", lambda self: saved.append(self._place) or save(self))
        run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "cut"})
    assert len(steps) == 4 and [(place["epoch"], place["done"]) for place in saved] == [(0, 0), (0, 4)]
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    resumed = run_recbole_rella("ReLLa", name, config_dict={**settings, "resume_from": "cut"})
    assert resumed["test_result"] == whole["test_result"]
    assert Path("cut/test_predictions.csv").read_text() == Path("whole/test_predictions.csv").read_text()


def state_of(run):
    return torch.load(f"{run}/resume.pt", weights_only=True)


def equal_states(first, second):
    return all(torch.equal(value, second["trainable"][name]) for name, value in first["trainable"].items()) and all(
        first[name] == second[name] for name in ("epoch", "done", "cur_step", "best_epoch", "best_valid_score")
    )


# What is called at the place; of its calls, which one is interrupted; whether before it or behind it.
INTERRUPTED_AT = {
    "gradients of a step": (ReLLaTrainer, "_accumulate", 6, True),  # by a second Ctrl-C
    "parameters of a step": (ReLLaTrainer, "_after_step", 6, False),
    "a validation": (ReLLaTrainer, "_valid_epoch", 2, True),
    "what follows from a validation": (WandbLogger, "log_metrics", 4, True),
}
SOONEST = ("parameters of a step", "what follows from a validation")


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=() if place in SOONEST else pytest.mark.slow) for place in INTERRUPTED_AT]
)
def test_a_run_that_is_interrupted_anywhere_and_again_equals_an_uninterrupted_one(place, movies, llms, monkeypatch):
    """The second time it is while the batches are skipped that were done the first time."""
    name, tiny = movies
    own = {"llm": llms("llama"), "epochs": 3, "stopping_step": 1, "lora_dropout": 0.3, "learning_rate": 0.02}
    settings = {**tiny, **own, "train_shots": 48, "train_batch_size": 24}
    run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "whole"})
    assert state_of("whole")["cur_step"] == 2  # a validation that is counted twice would end the run sooner
    owner, method, which, behind = INTERRUPTED_AT[place]
    calls, uncut = [], getattr(owner, method)

    def cut(*given, **more):
        calls.append(1)
        if len(calls) == which and not behind:
            raise KeyboardInterrupt
        result = uncut(*given, **more)
        if len(calls) == which:
            raise KeyboardInterrupt
        return result

    def cut_again(self):
        assert self._skip
        next(iter(self._loader))
        torch.rand(7)  # as sampling may
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, method, cut)
        run_recbole_rella("ReLLa", name, config_dict={**settings, "checkpoint_minutes": 0, "run_folder": "cut"})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.RemainingBatches, "__iter__", cut_again)
        run_recbole_rella("ReLLa", name, config_dict={**settings, "resume_from": "cut"})
    run_recbole_rella("ReLLa", name, config_dict={**settings, "resume_from": "cut"})
    assert Path("cut/test_predictions.csv").read_text() == Path("whole/test_predictions.csv").read_text()
    assert equal_states(state_of("cut"), state_of("whole"))


def test_a_run_that_was_stopped_early_goes_on_where_it_would_not_have_been(movies, llms):
    """With another stopping_step; further epochs alone change nothing of that."""
    name, tiny = movies
    settings = {**tiny, "llm": llms("llama"), "train_shots": 48, "epochs": 4, "learning_rate": 0.05, "lora_dropout": 0.3}
    run_recbole_rella("ReLLa", name, config_dict={**settings, "stopping_step": 9, "run_folder": "whole"})
    run_recbole_rella("ReLLa", name, config_dict={**settings, "stopping_step": 0, "run_folder": "cut"})
    stopped, scores = state_of("cut"), Path("cut/test_predictions.csv").read_text()
    assert stopped["epoch"] == stopped["best_epoch"] + 2 < 4
    for more in ({}, {"epochs": 9}, {"epochs": 1}, {"epochs": 0}):
        run_recbole_rella("ReLLa", name, config_dict={**settings, "stopping_step": 0, **more, "resume_from": "cut"})
        assert Path("cut/test_predictions.csv").read_text() == scores and equal_states(state_of("cut"), stopped)
    run_recbole_rella("ReLLa", name, config_dict={**settings, "stopping_step": 9, "resume_from": "cut"})
    assert Path("cut/test_predictions.csv").read_text() == Path("whole/test_predictions.csv").read_text()
    assert equal_states(state_of("cut"), state_of("whole"))


def test_further_epochs_are_trained_at_the_rates_of_all(movies, llms, monkeypatch):
    """Not at the one that the last epoch had ended with, which was 0."""
    name, tiny = movies
    settings, rates, after_step = {**tiny, "llm": llms("llama"), "train_shots": 64}, [], ReLLaTrainer._after_step

    def keeping(self):
        rates.append(self.optimizer.param_groups[0]["lr"])
        after_step(self)

    monkeypatch.setattr(ReLLaTrainer, "_after_step", keeping)
    run_recbole_rella("ReLLa", name, config_dict={**settings, "epochs": 2, "run_folder": "at once"})
    expected = rates[len(rates) // 2 :]
    run_recbole_rella("ReLLa", name, config_dict={**settings, "epochs": 1, "run_folder": "run"})
    rates.clear()
    run_recbole_rella("ReLLa", name, config_dict={**settings, "epochs": 2, "resume_from": "run"})
    assert rates == expected and rates[0] > 0


class GPUs:
    """In the place of torch.cuda: as many GPUs as can be seen, each with the state of a random generator."""

    def __init__(self, count):
        self.states = [torch.tensor([place], dtype=torch.uint8) for place in range(count)]

    def is_available(self):
        return bool(self.states)

    def get_rng_state(self, device):
        return self.states[device.index]

    def set_rng_state(self, state, device):
        self.states[device.index] = state

    def get_rng_state_all(self):
        return list(self.states)

    def set_rng_state_all(self, states):
        for place, state in enumerate(states):
            self.states[place] = state


@pytest.mark.parametrize("before, now", [("cuda:1", "cuda:0"), ("cuda:0", "cuda:2"), ("cuda:0", "cpu"), ("cpu", "cuda:0")])
def test_a_run_goes_on_where_other_gpus_can_be_seen(before, now, monkeypatch):
    """The state of the run's own is that of the one on which it goes on; others stay as they are."""
    before, now = torch.device(before), torch.device(now)
    monkeypatch.setattr(torch, "cuda", GPUs(before.index + 1 if before.type == "cuda" else 0))
    state = checkpoint.random_state(before)
    expected = torch.rand(3), np.random.rand(), random.random()
    gpus = GPUs(now.index + 1 if now.type == "cuda" else 0)
    states = list(gpus.states)
    monkeypatch.setattr(torch, "cuda", gpus)
    checkpoint.restore_random(state, now)
    assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(), random.random()) == expected[1:]
    if now.type == before.type == "cuda":
        states[now.index] = torch.tensor([before.index], dtype=torch.uint8)
    assert gpus.states == states


def test_recboles_own_resuming_is_refused(movies):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "run"})
    _, _, trainer, _ = make(name, tiny)
    with pytest.raises(RunError, match="resume_checkpoint: expected the folder of the run as resume_from .*, found run/resume.pt"):
        trainer.resume_checkpoint("run/resume.pt")
    assert trainer.start_epoch == 0


def test_more_epochs_go_on_behind_the_last_one(movies):
    """A finished run that is given more epochs shuffles on, and does not walk the last epoch's order again."""
    name, tiny = movies
    settings = {**tiny, "learner": "sgd", "warmup_ratio": 0.0, "learning_rate": 0.0, "run_folder": "run"}
    run_recbole_rella("ReLLa", name, config_dict={**settings, "epochs": 1})
    order = torch.load("run/resume.pt", weights_only=True)["order"]
    run_recbole_rella("ReLLa", name, config_dict={**settings, "epochs": 2, "run_folder": None, "resume_from": "run"})
    assert not torch.equal(torch.load("run/resume.pt", weights_only=True)["order"], order)


def test_a_state_that_is_damaged(movies):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "run"})
    Path("run/resume.pt").write_bytes(Path("run/resume.pt").read_bytes()[:100])
    with pytest.raises(
        RunError, match=r"expected the state of a run in run/resume.pt, found one that does not read .*Start the run again"
    ):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "resume_from": "run", "epochs": 2})
