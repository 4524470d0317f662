"""SIM: what it reads of a row's past, what it attends to, and that it learns."""

import logging
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import rewrite, written_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_rella import run_recbole_rella
from recbole_rella.atomic.errors import DatasetError
from recbole_rella.experiments.plan import make_base, make_entries, settings_of
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.fitted_trainer import keeping_predictions
from recbole_rella.keys import ConfigError
from recbole_rella.model.context_aware_recommender.sim import SearchUnit, TargetAttention, highest
from recbole_rella.quick_start import load_data, load_data_and_model, make_config
from recbole_rella.rows.fields import BEHAVIOUR_COLUMNS, BEHAVIOURS_FOR, ROW_ID
from recbole_rella.run_folder import RunChangedError, RunError, read_run
from recbole_rella.serving.scorer import Scorer

SEARCHES = ("semantic", "category", "soft", "attention")
OWN = {
    "embedding_size": 6,
    "mlp_hidden_size": [8, 5],
    "sim_recent_size": 7,
    "sim_size": 3,
    "category_field": "class",
    "train_batch_size": 64,
    "learning_rate": 0.02,
    "eval_args": {"split": {"RS": [0.7, 0.15, 0.15]}, "order": "TO", "group_by": None, "mode": "labeled"},
}


@pytest.fixture
def made(movies):
    """Makes (configuration, data set, data loaders, model in evaluation mode) of the small data set."""

    def make(seed=1, **more):
        name, tiny = movies
        config = make_config("SIM", name, config_dict={**tiny, **OWN, **more})
        dataset, loaders = load_data(config)
        torch.manual_seed(seed)
        model = config.model_class(config, loaders[0]._dataset).eval()
        with torch.no_grad():  # as they begin, embeddings are too small to tell one row from another
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.weight.normal_()
                elif getattr(module, "bias", None) is not None:
                    module.bias.normal_(0, 0.3)
        return config, dataset, loaders, model

    return make


def batch_of(loaders, place=2):
    batch = next(iter(loaders[place]))
    return batch[0] if isinstance(batch, tuple) else batch


def past_of(dataset, branch, rows):
    """Row_ids of a branch's behaviours, sorted lists."""
    found = dataset.behaviours.branches[branch](rows, dataset.rows.item[rows])
    return [sorted(row[row >= 0].tolist()) for row in np.asarray(found)]


# What it reads.


def test_semantic_search_shows_the_rows_that_rella_shows(movies, made):
    name, tiny = movies
    _, dataset, loaders, _ = made(sim_size=4)
    rella, parts = load_data(make_config("ReLLa", name, config_dict={**tiny, "mini_epochs": 0, "eval_args": OWN["eval_args"]}))
    assert rella.identity() == dataset.identity() and tiny["history_size"] == 4
    for loader, part in zip(loaders, parts):
        rows = loader._dataset.inter_feat[ROW_ID].numpy()
        assert set(rows) == set(part._dataset.inter_feat[ROW_ID].tolist())
        shown = rella.assembly.prompter.retriever.closest(rows, rella.rows.item[rows])
        assert past_of(dataset, 1, rows) == [sorted(row[row >= 0].tolist()) for row in shown]


def test_the_llms_own_states_can_be_the_space_that_is_searched(made, llms):
    _, dataset, loaders, model = made(retrieval_encoder="llm", llm=llms("llama"))
    assert dataset.behaviours.identities["encoder"].endswith("/mean, 512, cosine")
    assert len(model.predict(batch_of(loaders))) == len(loaders[2]._dataset)
    assert not any("llm" in key for key in model.state_dict())


def test_branches_are_the_latest_and_those_of_the_targets_category(made):
    _, dataset, loaders, model = made(sim_search="category")
    rows, columns = loaders[1]._dataset.inter_feat[ROW_ID].numpy(), dataset.rows
    histories = [dataset.histories.of(row) for row in rows]
    assert past_of(dataset, 0, rows) == [history[-7:].tolist() for history in histories]
    genre = np.concatenate([dataset.item_feat["class"].numpy()[:, 0]])
    same = [[past for past in h if genre[columns.item[past]] == genre[columns.item[row]]] for row, h in zip(rows, histories)]
    assert past_of(dataset, 1, rows) == [past[-3:] for past in same]
    # The columns are those behaviours, with what they were answered, and the time that passed since.
    batch = batch_of(loaders, 1)
    np.testing.assert_array_equal(batch[ROW_ID].numpy(), rows)
    items, answers, gaps = (batch[name].numpy() for name in BEHAVIOUR_COLUMNS[1])
    for place, past in enumerate(same):
        past, count = np.array(past[-3:], dtype=int), min(3, len(past))
        assert items[place].tolist() == columns.item[past].tolist() + [0] * (3 - count)
        assert dataset.behaviours.scale.values[answers[place, :count] - 1].tolist() == columns.rating[past].tolist()
        seconds = columns.time[rows[place]] - columns.time[past]
        assert gaps[place, :count].tolist() == [1 + int(np.log2(s + 1)) for s in seconds] and not gaps[place, count:].any()


def test_no_batch_is_wider_than_its_longest_history(made):
    _, dataset, loaders, _ = made(sim_search="attention", min_history=0, sim_recent_size=500, sim_max_history=10)
    for batch in loaders[0]:
        longest = max(len(dataset.histories.of(row)) for row in batch[ROW_ID].tolist())
        assert batch["recent.items"].shape[1] == longest and batch["searched.items"].shape[1] == min(longest, 10)


@pytest.mark.parametrize("search", SEARCHES)
def test_batches_can_be_made_in_workers_that_are_spawned(search, made):
    """As on macOS and Windows, where a worker gets a pickled loader."""
    _, _, loaders, _ = made(sim_search=search)
    for loader in loaders:
        collate = pickle.loads(pickle.dumps(loader.collate_fn))
        ours, theirs = loader.collate_fn([3, 5]), collate([3, 5])
        ours, theirs = (part[0] if isinstance(part, tuple) else part for part in (ours, theirs))
        assert all(torch.equal(ours[name], theirs[name]) for name in sum(BEHAVIOUR_COLUMNS, ()))


@pytest.mark.parametrize("search", SEARCHES)
def test_its_own_rating_and_later_rows_never_enter(search, movies, made):
    """Every rating from the first validation row on is another one: only rows behind it may notice."""
    _, dataset, loaders, model = made(sim_search=search, dropout_prob=0.5)
    first = int(loaders[1]._dataset.inter_feat[ROW_ID].min())
    before = {row: score for loader in loaders for row, score in scores(model, loader).items()}
    threshold = dataset.rows.time[first]

    def other(text):
        header, *lines = text.splitlines()
        cells = [line.split("\t") for line in lines]
        return "\n".join([header, *("\t".join([u, i, str(6 - int(r)) if float(t) >= threshold else r, t]) for u, i, r, t in cells)])

    name, tiny = movies
    rewrite(tiny, name, "inter", other)
    _, changed, loaders, model = made(sim_search=search, dropout_prob=0.5)
    assert (changed.rows.rating[first:] == 6 - dataset.rows.rating[first:]).all() and changed.rows.label[first] != 2
    after = {row: score for loader in loaders for row, score in scores(model, loader).items()}
    assert max(abs(before[row] - after[row]) for row in before if row <= first) == 0
    assert max(abs(before[row] - after[row]) for row in before if row > first) > 1e-3


def scores(model, loader):
    """row_id -> score."""
    found = {}
    for batch in loader:
        batch = batch[0] if isinstance(batch, tuple) else batch
        found |= dict(zip(batch[ROW_ID].tolist(), model.predict(batch).tolist()))
    return found


def test_it_makes_no_feature_of_row_ids_and_ratings(made):
    _, dataset, loaders, model = made()
    names = {*model.token_field_names, *model.float_field_names, *model.token_seq_field_names}
    assert names == {"user_id", "item_id", "age", "gender", "occupation", "movie_title", "release_year", "class"}
    assert ROW_ID in batch_of(loaders) and str(dataset)
    *_, loaders, model = made(history_fields=["user_mean", "days_since_last"], history_buckets=8)
    assert set(model.token_field_names) - names == {"history.user_mean", "history.days_since_last"}
    assert model.predict(batch_of(loaders)).std() > 0


def test_a_rating_beside_labels_is_no_feature(movies, made):
    """Labels are then a column of their own, and RecBole leaves the rating among the features."""
    name, tiny = movies

    def both(text):
        header, *lines = text.splitlines()
        return "\n".join([header + "\tlabel:float", *(f"{line}\t{int(line.split()[2] > '3')}" for line in lines)])

    rewrite(tiny, name, "inter", both)
    _, dataset, loaders, model = made(threshold=None, numerical_features=["rating"])
    batch = batch_of(loaders)
    assert "rating" in batch and "rating" not in model.float_field_names and dataset.behaviours.scale.values.max() == 5
    before = model.predict(batch)
    batch["rating"] = 6 - batch["rating"]
    torch.testing.assert_close(model.predict(batch), before)


# What it computes.


def by_hand(model, batch, row, search):
    """The score of one row, in numpy, from the weights alone; one behaviour after the other."""
    w = {name: value.detach().numpy().astype(np.float64) for name, value in model.state_dict().items()}
    offsets = dict(zip(model.token_field_names, model.token_field_offsets))
    table = w["token_embedding_table.embedding.weight"]

    def embedded(field, value):
        return table[offsets[field] + int(value)]

    def mean(place, values):
        there = [value for value in values if value > 0]
        return np.mean([w[f"token_seq_embedding_table.{place}.weight"][value] for value in there] or [np.zeros(6)], axis=0)

    category = model.token_seq_field_names.index("class")

    def item(number):
        return embedded("item_id", number) + mean(category, model._categories[number].tolist())

    def behaviours(names):
        items, answers, gaps = (batch[name][row].tolist() for name in names)
        parts = [(i, a, g) for i, a, g in zip(items, answers, gaps) if i]
        of = [w["of_item.weight"], w["of_answer.weight"], w["of_gap.weight"]]
        together = np.concatenate(of, axis=1)  # W of W [item; answer; gap] + c
        return [
            np.maximum(together @ np.concatenate([item(i), w["answers.weight"][a], w["gaps.weight"][g]]) + w["of_item.bias"], 0)
            for i, a, g in parts
        ]

    target = item(int(batch["item_id"][row]))
    attended = []
    for branch, names in enumerate(BEHAVIOUR_COLUMNS):
        of, past = f"branches.{branch}.", behaviours(names)
        if search == "attention":
            query, keys = w[of + "query.weight"] @ target, [w[of + "key.weight"] @ b for b in past]
            score = np.array([query @ key / np.sqrt(6) for key in keys])
            chosen = np.argsort(-score)[: model.count if branch else len(past)]
            weights = np.exp(score[chosen]) / np.exp(score[chosen]).sum()
            total = sum(weight * (w[of + "value.weight"] @ past[place]) for weight, place in zip(weights, chosen))
            attended.append(w[of + "output.weight"] @ total)
        else:
            total = np.zeros(6)
            for b in past:
                read = np.concatenate([target, b, target - b, target * b])
                hidden = np.maximum(w[of + "layers.0.weight"] @ read + w[of + "layers.0.bias"], 0)
                total += (w[of + "layers.2.weight"] @ hidden + w[of + "layers.2.bias"]) * b
            attended.append(total)
    fields = [mean(place, batch[name][row].tolist()) for place, name in enumerate(model.token_seq_field_names)]
    fields += [embedded(name, batch[name][row]) for name in model.token_field_names]
    hidden = np.concatenate([*fields, *attended])
    for layer in (1, 4):
        hidden = np.maximum(w[f"mlp_layers.mlp_layers.{layer}.weight"] @ hidden + w[f"mlp_layers.mlp_layers.{layer}.bias"], 0)
    logit = (w["predict_layer.weight"] @ hidden + w["predict_layer.bias"]).item()
    return hidden, 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize("search", ["semantic", "attention"])
def test_a_row_by_hand(search, made):
    _, _, loaders, model = made(sim_search=search)
    batch = batch_of(loaders)
    found, vectors = model.predict(batch), model.row_vectors(batch)
    assert vectors.shape == (len(batch), 5) and found.std() > 0.01
    bare = loaders[2]._dataset[torch.arange(len(batch))]  # rows of a data set, of which no DataLoader has made a batch
    torch.testing.assert_close(model.train().row_vectors(bare), vectors)
    assert model.training and not model.eval().training
    for row in (0, 5):
        hidden, score = by_hand(model, batch, row, search)
        assert found[row].item() == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(vectors[row].numpy(), hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("search", SEARCHES)
def test_what_is_masked_is_as_if_it_were_not_there(search, made):
    _, _, loaders, model = made(sim_search=search)
    batch = batch_of(loaders)
    wider = {
        name: F.pad(column, (0, 60)) if name in sum(BEHAVIOUR_COLUMNS, ()) else column for name, column in batch.interaction.items()
    }
    torch.testing.assert_close(model.predict(Interaction(wider)), model.predict(batch), atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_padding_is_never_among_the_highest(count, seed):
    random = torch.Generator().manual_seed(seed)
    there = torch.rand(5, 12, generator=random) < 0.5
    scores = -10 * torch.rand(5, 12, generator=random)  # all are below 0, the score of padding in other implementations
    places = highest(scores, there, count)
    chosen = there.gather(1, places)
    assert (chosen.sum(dim=1) == there.sum(dim=1).clamp(max=count)).all()
    kept = scores.gather(1, places).masked_fill(~chosen, torch.inf).amin(dim=1)
    left = scores.masked_fill(~there, -torch.inf).scatter(1, places, -torch.inf).amax(dim=1)
    assert (kept >= left).all()


def test_attention_over_as_many_as_there_are_is_plain_attention():
    torch.manual_seed(0)
    target, behaviours, there = torch.randn(4, 6), torch.randn(4, 9, 6), torch.ones(4, 9, dtype=torch.bool)
    there[1, 4:] = there[2, 1:] = there[3] = False
    unit = TargetAttention(6)
    found = unit(target, behaviours, there)
    query, key, value = unit.query(target).unsqueeze(1), unit.key(behaviours), unit.value(behaviours)
    plain = unit.output(F.scaled_dot_product_attention(query, key, value, there.unsqueeze(1))).squeeze(1)
    torch.testing.assert_close(found[:3], plain[:3], atol=1e-6, rtol=1e-5)
    assert not found[3].any()  # nothing to attend to
    (found.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in unit.parameters())


@pytest.mark.parametrize("search", ["soft", "attention"])
def test_a_search_for_more_than_there_are_attends_to_all(search, made):
    """Both are then the same network, as the long branch of attention to all that sim_max_history allows."""
    _, _, loaders, few = made(sim_search=search, sim_size=3)
    _, _, _, exact = made(sim_search=search, sim_size=29)
    _, _, _, many = made(sim_search=search, sim_size=10**6)
    batch = batch_of(loaders)
    assert batch["searched.items"].shape[1] <= 29
    for model in (exact, many):
        model.load_state_dict(few.state_dict())
    torch.testing.assert_close(exact.predict(batch), many.predict(batch))
    assert (few.predict(batch) - many.predict(batch)).abs().max() > 1e-4
    many.search, many.search_unit = "soft", None  # no search at all
    torch.testing.assert_close(exact.predict(batch), many.predict(batch))


def test_searched_attention_learns_as_if_all_behaviours_had_been_read(made):
    """The search runs without gradients, and behaviours that it leaves out are read nowhere else: gradients stay those of a plain
    walk through all."""
    _, _, loaders, few = made(sim_search="attention", sim_size=3)
    _, _, _, plain = made(sim_search="attention", sim_size=10**6)
    plain.load_state_dict(few.state_dict())
    batch = batch_of(loaders, 0)
    few.calculate_loss(batch).backward()
    fields, target, (recent, (behaviours, there)) = plain._read(batch)
    scores = plain.branches[1].scores(target, behaviours).masked_fill(~there, -torch.inf)
    best = scores.argsort(dim=1, descending=True)[:, :3]
    rows = torch.arange(len(best)).unsqueeze(1)
    logits = plain.predict_layer(plain._hidden(fields, target, [recent, (behaviours[rows, best], there[rows, best])])).squeeze(-1)
    F.binary_cross_entropy_with_logits(logits, batch["label"]).backward()
    for (name, one), other in zip(few.named_parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert few.of_gap.weight.grad.abs().max() > 1e-4


def test_the_loss_of_the_search_is_a_term_of_its_own(made):
    _, _, loaders, model = made(sim_search="soft", sim_loss_weight=0.5)
    batch = batch_of(loaders, 0)
    found, labels = model.calculate_loss(batch), batch["label"]
    plain = F.binary_cross_entropy(model.predict(batch), labels)
    fields, target, branches = model._read(batch)
    behaviours, there = branches[1]
    scores = model.search_unit(target, behaviours)
    pooled = torch.stack([sum(s * b for s, b, t in zip(*row) if t) for row in zip(scores, behaviours, there)])
    assert isinstance(model.search_unit, SearchUnit)
    hidden = model.search_unit.layers(torch.cat([fields, target, pooled], dim=1))
    searched = F.binary_cross_entropy_with_logits(model.search_unit.output(hidden).squeeze(1), labels)
    torch.testing.assert_close(found, plain + 0.5 * searched)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_a_weight_the_search_stays_as_it_began(weight, made):
    config, _, loaders, model = made(sim_search="soft", sim_loss_weight=weight, epochs=1, weight_decay=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keeping_predictions(Trainer)(config, model).fit(loaders[0], loaders[1], verbose=False, saved=False)
    moved = {name: not torch.equal(value, before[name]) for name, value in model.state_dict().items()}
    search = [moved[name] for name in moved if name.startswith("search_unit")]
    assert len(search) == 8 and all(search) == any(search) == (weight > 0)
    assert moved["branches.1.query.weight"] and moved["token_embedding_table.embedding.weight"]


@pytest.mark.parametrize(
    "more, gone, columns",
    [
        ({"sim_read_ratings": False}, "of_answer", 5),
        ({"sim_time_gaps": False}, "of_gap", 5),
        ({"sim_size": 0}, "branches.1", 4),
        ({"sim_recent_size": 0}, "branches.0", 4),
    ],
)
def test_what_is_not_asked_for_is_not_read(more, gone, columns, made):
    _, _, loaders, model = made(**more)
    assert not [name for name in model.state_dict() if name.startswith(gone)]
    batch = batch_of(loaders)
    other = {"of_answer": "recent.answers", "of_gap": "recent.gaps"}.get(gone)
    before = model.predict(batch)
    if other:
        batch[other] = torch.flip(batch[other], [0])
        torch.testing.assert_close(model.predict(batch), before)
    else:
        assert batch[BEHAVIOUR_COLUMNS[int(gone[-1])][0]].shape[1] == 0 and before.std() > 0.01


# The run.


@pytest.mark.parametrize("search", ["semantic", "soft", "attention"])
def test_it_learns_and_a_finished_run_is_loaded_again(search, movies):
    name, tiny = movies
    own = {
        **tiny,
        **OWN,
        "sim_search": search,
        "epochs": 8,
        "dropout_prob": 0.1,
        "run_folder": "saved/run",
        "mlp_hidden_size": [16],
    }
    result = run_recbole_rella("SIM", name, config_dict=own)
    assert result["best_valid_result"]["auc"] > 0.75
    table = written_predictions(result)
    run = read_run("saved/run")
    assert run.metrics["shots"] == run.metrics["rows"]["train"] and set(run.identities) == {"version", "rows", "encoder"}
    assert run.identities["encoder"] == ("tfidf, 512, cosine" if search == "semantic" else None)
    _, model, dataset, *loaders = load_data_and_model("saved/run")
    found = scores(model, loaders[2])
    assert [found[row] for row in table["row_id"]] == pytest.approx(table["score"].tolist(), abs=1e-7)
    assert model.item_vectors().shape == (dataset.item_num, 6) and model.item_vectors().dtype == torch.float32
    if search == "semantic":
        with pytest.raises(RunError, match="expected a finished run of ReLLa, found one of SIM .*: load_data_and_model loads it"):
            Scorer.load("saved/run")
        rewrite(tiny, name, "item", lambda text: text.replace("Comedy Story 0", "Drama Story 0"))
        with pytest.raises(RunChangedError, match="rows: the rows of the data set and their split"):
            load_data_and_model("saved/run")


def test_weights_are_read_without_running_what_is_pickled(movies, tmp_path):
    name, tiny = movies
    run_recbole_rella("SIM", name, config_dict={**tiny, **OWN, "run_folder": "run"})
    path = read_run("run").folder / "model.pth"
    kept = torch.load(path, weights_only=False)
    marker = tmp_path / "ran"
    torch.save({**kept, "config": Runs(marker)}, path)
    weights = read_run("run").weights()
    assert not marker.exists() and set(weights) == set(kept["state_dict"])
    assert all(torch.equal(weights[key], value) for key, value in kept["state_dict"].items())
    torch.load(path, weights_only=False)
    assert marker.exists()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match="expected the checkpoint of a finished run in .*model.pth"):
        read_run("run").weights()


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.slow
def test_side_by_side_on_the_rows_of_rella(movies, in_this_process):
    name, tiny = movies
    own = {**tiny, **OWN, "train_shots": 20, "mini_epochs": 0, "SIM.epochs": 2, "lora_r": 2, "history_size": 4}
    table, runs, folder = run_side_by_side(["SIM", "TWIN", "DIN_ratings", "ReLLa"], name, None, own, report=str)
    assert table["model"].tolist() == ["SIM", "TWIN", "DIN_ratings", "ReLLa"] and table["test AUC"].notna().all()
    shots = runs.set_index("model")["shots"]
    assert shots["ReLLa"] == 20 and (shots.drop("ReLLa") > 100).all()  # train_shots are ReLLa's alone
    runs = [read_run(folder / name) for name in runs["folder"]]
    assert [run.given["sim_size"] for run in runs[:3]] == [3, 3, 0] and "sim_size" not in runs[3].given
    assert runs[1].given["sim_search"] == "attention" and not {"lora_r", "train_history"} & set(runs[0].given)


def test_settings_of_other_models_do_not_reach_it(movies, caplog):
    name, tiny = movies
    (entry,) = make_entries(["DIN_ratings"])
    assert entry.model == "SIM" and entry.is_ours and not entry.is_rella
    base = make_base([entry], name, None, {**tiny, "lora_r": 3, "train_shots": 50, "retrieval_metric": "l2"})
    own = settings_of(entry, base, 1, "split.npz")
    assert own["sim_size"] == 0 and own["retrieval_metric"] == "l2" and not {"lora_r", "train_shots", "train_history"} & set(own)
    base = make_base([entry], name, None, {**tiny, "train_shots": 50, "train_shots_for": "all"})
    assert settings_of(entry, base, 1, "split.npz")["train_shots"] == 50
    caplog.set_level(logging.WARNING)
    make_config("SIM", name, config_dict={**tiny, "lora_r": 3})
    assert "SIM does not read these keys of other models, and they change nothing: [" in caplog.text and "'lora_r'" in caplog.text


def test_the_data_sets_file_is_read_and_its_shots_are_rellas():
    config = make_config("SIM", "ml-100k")
    assert config["prompt_noun"] == "movie" and config["train_shots"] is None and config["category_field"] == "class"
    assert make_config("SIM", "ml-100k", config_dict={"train_shots": 64})["train_shots"] == 64
    assert make_config("ReLLa", "ml-100k")["sim_search"] is None


@pytest.mark.parametrize(
    "given, message",
    [
        ({"sim_search": "semantics"}, "sim_search: expected one of semantic, category, soft, attention, found 'semantics'"),
        ({"sim_sizes": 3}, "sim_sizes: there is no such key; the nearest valid one is sim_size"),
        ({"sim_size": 0, "sim_recent_size": 0}, "sim_recent_size: expected an integer of at least 1 with sim_size 0"),
        ({"sim_loss_weight": -1}, "sim_loss_weight: expected a number of at least 0, found -1"),
    ],
)
def test_settings_that_cannot_be_used(given, message, movies):
    name, tiny = movies
    with pytest.raises(ConfigError, match=message):
        make_config("SIM", name, config_dict={**tiny, **given})


@pytest.mark.parametrize("field, search", [(None, "category"), ("rating", "attention")])
def test_categories_that_are_not_there(field, search, made):
    with pytest.raises(DatasetError, match="category_field: expected a field of words of the .item file.*'class'"):
        made(category_field=field, sim_search=search)


def test_data_without_ratings_features_or_times(movies):
    """Behaviours are then told by their labels, and stand in a random order."""
    name, tiny = movies
    rewrite(tiny, name, "inter", lambda text: text.replace("rating:float", "label:float"))
    rewrite(tiny, name, "inter", labelled)
    own = {**tiny, **OWN, "threshold": None, "history_shuffle_seed": 3, "category_field": None, "sim_search": "attention"}
    own |= {"load_col": {"inter": ["user_id", "item_id", "label"]}, "run_folder": "saved/run"}
    assert written_predictions(run_recbole_rella("SIM", name, config_dict=own))["score"].between(0, 1).all()
    _, _, dataset, *_ = load_data_and_model("saved/run")
    assert dataset.behaviours.scale.values.tolist() == [0, 1] and dataset.behaviours.scale.codes[0] == dataset.rows.label[0] + 1


def labelled(text):
    header, *lines = text.splitlines()
    cells = [line.split("\t") for line in lines]
    return "\n".join([header, *("\t".join([u, i, "1" if int(r) >= 4 else "0", t]) for u, i, r, t in cells)])


# Candidates.


@pytest.mark.parametrize("search", ["semantic", "soft"])
def test_candidates_are_searched_for_with_their_own_item(search, made):
    _, dataset, loaders, model = made(sim_search=search)
    batch = batch_of(loaders)
    other = Interaction(dict(batch.interaction))
    other["item_id"] = torch.roll(batch["item_id"], 1)
    stale = model.predict(other)
    bare = {name: column for name, column in other.interaction.items() if name not in (BEHAVIOURS_FOR, *sum(BEHAVIOUR_COLUMNS, ()))}
    torch.testing.assert_close(stale, model.predict(Interaction(bare)))
    assert not torch.allclose(stale, model.predict(batch))


@pytest.mark.parametrize("mode", ["uni9", "full"])
def test_ranking_metrics(mode, movies):
    name, tiny = movies
    rank = {**tiny, **OWN, "metrics": ["Recall", "NDCG"], "topk": [5], "valid_metric": "NDCG@5", "min_history": 5}
    rank["eval_args"] = {"split": {"RS": [8, 1, 1]}, "order": "TO", "group_by": "user", "mode": mode}
    result = run_recbole_rella("SIM", name, config_dict=rank)
    assert 0 < result["test_result"]["recall@5"] <= 1
