"""Bias, Tree, LightGBM and XGBoost on our rows: what they see, what they choose on validation, and what their runs leave."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import written_predictions
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from recbole_rella import run_recbole_rella
from recbole_rella.data.same_rows import NumbersDataset
from recbole_rella.model.boosted_columns import BoostedColumns
from recbole_rella.model.context_aware_recommender.bias import WEIGHTS, Bias
from recbole_rella.model.context_aware_recommender.tree import Tree
from recbole_rella.quick_start import ModelError, find_model, load_data, make_config
from recbole_rella.rows.bias import RunningBias
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.history import TEST
from recbole_rella.rows.split import Split, SplitError

SMALL = {"tree_rounds": 12, "tree_leaves": 4, "tree_learning_rate": 0.3}


def built(model, name, settings):
    """Configuration, data set, and the row_ids of train, valid and test."""
    config = make_config(model, name, config_dict=settings)
    dataset = NumbersDataset(config)
    return config, dataset, [part.inter_feat[ROW_ID].numpy() for part in dataset.build()]


def fitted(model_class, movies, change=lambda rows: None):
    """A model that was fitted after its rows were changed; and its rows of train, valid and test."""
    config, dataset, parts = built(model_class.__name__, movies[0], {**movies[1], **SMALL})
    change(dataset.rows)
    model = model_class(config, dataset)
    model.fit_rows(*parts[:2])
    return model, parts


def turn_test_answers(rows):
    of_test = rows.split == TEST
    rows.label[of_test], rows.rating[of_test] = 1 - rows.label[of_test], 6 - rows.rating[of_test]


def test_bias_is_the_best_of_the_grid_on_validation_and_a_logistic_regression_of_it(movies):
    model, (train, valid, test) = fitted(Bias, movies)
    rows, bias = model.rows, RunningBias(model.rows, model.histories)
    areas, values = {}, {}
    for item, user in product(WEIGHTS, WEIGHTS):
        (values[item, user],) = bias.scores(item, [user])
        areas[item, user] = roc_auc_score(rows.label[valid], values[item, user][valid])
    best = max(areas, key=areas.get)
    assert tuple(model.chosen.values()) == best and len(set(areas.values())) > 1
    line = LogisticRegression(C=np.inf).fit(values[best][train, None], rows.label[train])
    np.testing.assert_allclose(model.scores(test), line.predict_proba(values[best][test, None])[:, 1], rtol=1e-12)


def test_the_tree_reads_what_mixed_retrieval_finds(movies):
    """Whose vectors are of the training rows: a part of a split knows them as well."""
    name, tiny = movies
    runs = [
        run_recbole_rella("Tree", name, config_dict={**tiny, "history_fields": ["similar_mean"], "retrieval_encoder": encoder})
        for encoder in ("mix", "tfidf")
    ]
    assert runs[0]["best_valid_result"] != runs[1]["best_valid_result"]


def test_the_folder_of_a_tree_holds_all_that_its_numbers_are_made_of(movies, caplog):
    """Keys of retrieval count where it reads similar_*, and are neither left out nor said to change nothing."""
    name, tiny = movies
    of_numbers = {"history_fields": ["similar_mean"], "retrieval_encoder": "tfidf", "retrieval_sentence": "{{ item.movie_title }}"}
    found = []
    for size in (4, 1):
        own = {**tiny, **SMALL, **of_numbers, "history_size": size, "run_folder": f"size{size}"}
        run_recbole_rella("Tree", name, config_dict=own)
        run_recbole_rella("Tree", config_file_list=[f"size{size}/config.yaml"], config_dict={"run_folder": f"again{size}"})
        found.append([pd.read_csv(f"{folder}{size}/test_predictions.csv")["score"] for folder in ("size", "again")])
    for own, again in found:
        np.testing.assert_array_equal(own, again)
    assert (found[0][0] != found[1][0]).any()
    for key in ("retrieval_sentence", "run_folder"):
        assert not [record for record in caplog.records if f"'{key}'" in record.getMessage()], key
    run_recbole_rella("Tree", name, config_dict={**tiny, **SMALL, **of_numbers, "history_fields": ["user_mean"]})
    assert [record for record in caplog.records if "'retrieval_sentence'" in record.getMessage()]


def test_the_tree_reads_past_a_number_that_no_row_has(movies):
    """Of no behaviours there is no similar one: the tree is as without that number."""
    name, tiny = movies
    scores = []
    for more in (
        {"history_fields": ["user_mean", "similar_mean"], "history_size": 0},
        {"history_fields": ["user_mean"]},
    ):
        config, dataset, (train, valid, test) = built("Tree", name, {**tiny, **SMALL, **more, "retrieval_encoder": "tfidf"})
        model = Tree(config, dataset)
        model.fit_rows(train, valid)
        scores.append(model.scores(test))
    np.testing.assert_array_equal(*scores)
    assert np.ptp(scores[0]) > 0


@pytest.mark.parametrize("model", ["FM", "LightGBM"])
@pytest.mark.parametrize("buckets", [0, 8])
def test_models_of_recbole_read_past_a_number_that_no_row_has(model, buckets, movies):
    if model == "LightGBM":
        boosted(model)
    name, tiny = movies
    more = {
        "history_fields": ["user_mean", "similar_mean"],
        "history_size": 0,
        "history_buckets": buckets,
        "retrieval_encoder": "tfidf",
    }
    result = run_recbole_rella(model, name, config_dict={**tiny, **more, "load_col": None})
    assert 0 <= result["test_result"]["auc"] <= 1


def test_the_tree_is_scikit_learns_with_the_rounds_that_are_best_on_validation(movies):
    model, (train, valid, test) = fitted(Tree, movies)
    assert {"user_mean_10", "item_mean", "user_residual"} <= set(model.names) and not {"user_id", "item_id"} & set(model.names)
    label, found = model.rows.label, {}
    for rounds in range(1, SMALL["tree_rounds"] + 1):
        trees = HistGradientBoostingClassifier(
            max_iter=rounds, learning_rate=0.3, max_leaf_nodes=4, early_stopping=False, random_state=model.seed
        ).fit(model.numbers(train), label[train])
        found[rounds] = roc_auc_score(label[valid], trees.predict_proba(model.numbers(valid))[:, 1]), trees
    best = max(found, key=lambda rounds: found[rounds][0])
    assert model.chosen == {"rounds": best} and len({area for area, _ in found.values()}) > 1
    np.testing.assert_array_equal(model.scores(test), found[best][1].predict_proba(model.numbers(test))[:, 1])


@pytest.mark.parametrize("model_class", [Bias, Tree])
def test_test_answers_change_nothing_that_is_fitted_or_chosen(model_class, movies):
    (model, (_, valid, test)), (other, _) = fitted(model_class, movies), fitted(model_class, movies, turn_test_answers)
    assert other.chosen == model.chosen
    np.testing.assert_array_equal(other.scores(valid), model.scores(valid))
    assert not np.array_equal(other.scores(test), model.scores(test))  # of whose past they are


def metrics_of(model):
    (path,) = Path("saved").glob(f"{model}-*/metrics.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("model, reads", [("Bias", ["past ratings"]), ("Tree", ["history features"])])
def test_a_run_by_itself(model, reads, movies):
    name, tiny = movies
    result = run_recbole_rella(model, name, config_dict={**tiny, **SMALL, "epochs": 0})
    predictions = written_predictions(result)
    found = metrics_of(model)
    assert len(predictions) == 33 and predictions["score"].between(0, 1).all()
    assert found["reads"] == reads and found["chosen"] and found["best_epoch"] is None and found["parameters"]["trainable"] > 0
    assert found["valid"]["auc"] == result["best_valid_score"] > 0.5 and found["shots"] == 270
    assert run_recbole_rella(model, name, config_dict={**tiny, **SMALL, "seed": 3})["test_result"] == result["test_result"]


def test_without_a_validation_auc_bias_shrinks_by_ten(movies):
    config, dataset, (train, valid, _) = built("Bias", *movies)
    model = Bias(config, dataset)
    model.fit_rows(train, valid[dataset.rows.label[valid] == 1])
    assert model.chosen == {"item_shrinkage": 10, "user_shrinkage": 10}


@pytest.mark.parametrize("model", ["Bias", "Tree"])
def test_models_of_rows_are_not_asked_about_sampled_items(model, movies):
    """All candidates of a row would get the score of its own item."""
    name, tiny = movies
    args = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "uni5"}
    sampled = {"eval_args": args, "metrics": ["Recall"], "valid_metric": "Recall@5", "topk": [5]}
    with pytest.raises(SplitError, match=f"eval_args: expected the mode labeled with {model}, .* found .*uni5"):
        run_recbole_rella(model, name, config_dict={**tiny, **sampled})


def test_where_no_row_has_an_earlier_one_bias_tells_all_rows_the_same(movies):
    """All rows are of one time: nothing that a training row may take was rated before it."""
    config, dataset, (train, valid, test) = built("Bias", *movies)
    dataset.rows.time[:] = 7
    model = Bias(config, dataset)
    model.fit_rows(train, valid)
    liked = dataset.rows.label[train].mean()
    np.testing.assert_allclose(model.scores(test), liked, atol=0.01)
    np.testing.assert_array_equal(model.scores(train), 0.5)


# RecBole's trees.


def on_the_split(model, movies, **more):
    """Settings of a model on the rows of one split."""
    name, tiny = movies
    _, dataset, _ = built("Bias", name, tiny)
    split = Split(*(np.flatnonzero(dataset.rows.split == code) for code in range(3)), dataset.identity(), dataset.rows.split)
    split.save("split.npz")
    own = {key: tiny[key] for key in ("threshold", "data_path", "use_gpu", "gpu_id", "show_progress")}
    own |= {
        "eval_args": make_config("Bias", name, config_dict=tiny)["eval_args"],
        "metrics": ["AUC", "LogLoss", "Accuracy", "UAUC"],
    }
    small = {"lgb_num_boost_round": 8, "xgb_num_boost_round": 8, "metric_decimal_place": 6, "load_col": None}
    return {"model": model, "dataset": name, **own, **small, "split_file": str(Path("split.npz").resolve()), **more}


def boosted(model):
    pytest.importorskip(model.lower())
    pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")  # either of RecBole's imports both


@pytest.mark.parametrize("model", ["LightGBM", "XGBoost"])
def test_boosted_trees_of_recbole_run_as_other_models_do(model, movies):
    boosted(model)
    settings = on_the_split(model, movies, history_fields=["default"])
    result = run_recbole_rella(config_dict=settings)
    predictions, found = written_predictions(result, decimals=6), metrics_of(model)
    assert predictions["row_id"].tolist() == np.load("split.npz")["test"].tolist() and predictions["score"].between(0, 1).all()
    assert found["reads"] == ["ids", "features", "history features"] and 1 <= found["chosen"]["rounds"] <= 8
    assert found["test"] == result["test_result"] and 0 <= found["test"]["uauc"] <= 1 and found["parameters"]["trainable"] > 1
    (run,) = Path("saved").glob(f"{model}-*")
    assert {path.suffix for path in run.iterdir()} == {".yaml", ".json", ".csv", {"LightGBM": ".txt", "XGBoost": ".ubj"}[model]}
    assert not list(Path("saved").glob("*temp*"))
    # The file of trees alone, read by its library, gives the scores.
    config = make_config(config_dict=settings)
    _, (train, _, test) = load_data(config)
    columns = BoostedColumns(train._dataset)
    data = columns.of(test._dataset)
    if model == "LightGBM":
        import lightgbm

        trees = lightgbm.Booster(model_file=str(run / "trees.txt"))
        scores = trees.predict(data)
    else:
        import xgboost

        trees = xgboost.Booster(model_file=str(run / "trees.ubj"))
        kinds = ["c" if found["chosen"]["ids"] == "categories" and i in columns.tokens else "q" for i in range(data.shape[1])]
        scores = trees.predict(xgboost.DMatrix(data, feature_types=kinds, enable_categorical=True))
        assert trees.num_boosted_rounds() == found["chosen"]["rounds"]
    np.testing.assert_allclose(predictions["score"], scores, rtol=1e-6)
    assert run_recbole_rella(config_dict={**settings, "run_folder": "again"})["test_result"] == result["test_result"]


def test_the_columns_of_trees_are_those_of_other_models(movies):
    boosted("LightGBM")
    config = make_config(config_dict=on_the_split("LightGBM", movies, history_fields=["user_mean", "item_mean"]))
    dataset, (train, _, _) = load_data(config)
    columns = BoostedColumns(train._dataset)
    genres = [f"class={genre}" for genre in ("Comedy", "Drama", "Horror")]
    ids = ["user_id", "item_id"]
    assert set(columns.names) - {name for name in columns.names if name.startswith("movie_title=")} == {
        *(ids + genres),
        *("age", "gender", "occupation", "release_year", "history.user_mean", "history.item_mean"),
    }
    table, rows = columns.of(train._dataset), dataset.rows
    row_ids = train._dataset.inter_feat[ROW_ID].numpy()
    by_name = dict(zip(columns.names, table.T))
    np.testing.assert_array_equal(by_name["item_id"], rows.item[row_ids])
    words = dataset.field2id_token["item_id"][rows.item[row_ids]]
    np.testing.assert_array_equal(by_name["class=Drama"], [(int(word) - 100) % 3 == 1 for word in words])
    # Numbers as they are, nan and all; no row's own answer is among them.
    own = rows.label[row_ids]
    assert all(not np.array_equal(np.nan_to_num(column), own) for column in table.T)


@pytest.mark.parametrize("model", ["LightGBM", "XGBoost"])
def test_trees_read_numerical_features(model, movies):
    """Which change nothing for trees: they read float fields anyway; but for the time, which is read where it is named, and numbers
    that RecBole puts into buckets."""
    boosted(model)
    name, tiny = movies
    path = Path(tiny["data_path"]) / name / f"{name}.item"
    header, *lines = path.read_text().splitlines()
    prices = [f"{place}.5" if place % 4 else "" for place in range(len(lines))]
    path.write_text("\n".join([f"{header}\tprice:float", *map("\t".join, zip(lines, prices))]) + "\n")

    def table(**more):
        config = make_config(config_dict=on_the_split(model, movies, history_fields=["user_mean"], **more))
        train = load_data(config)[1][0]._dataset
        columns = BoostedColumns(train)
        return dict(zip(columns.names, columns.of(train).T))

    plain = table()
    named = table(numerical_features=["price", "timestamp"])
    assert set(named) - set(plain) == {"timestamp"} and len(np.unique(plain["price"])) > 20
    for column, values in plain.items():
        np.testing.assert_array_equal(named[column], values)
    assert len(np.unique(named["timestamp"])) > 10
    in_buckets = table(numerical_features=["price"], discretization={"price": {"method": "ED", "bucket": 3}})
    assert set(in_buckets["price"]) == {1, 2, 3} and (np.diff(in_buckets["price"][np.argsort(plain["price"])]) >= 0).all()
    result = run_recbole_rella(config_dict=on_the_split(model, movies, numerical_features=["price", "timestamp"]))
    assert 0 <= result["test_result"]["auc"] <= 1


@pytest.mark.parametrize("model", ["LightGBM", "XGBoost"])
def test_trees_that_have_nothing_to_choose_their_rounds_on(model, movies):
    boosted(model)
    name, tiny = movies
    args = {"split": {"RS": [0.5, 0, 0.5]}, "order": "TO", "group_by": None, "mode": "labeled"}
    with pytest.raises(SplitError, match=f"eval_args: expected validation rows with {model}, .* found none; give"):
        run_recbole_rella(model, name, config_dict={**tiny, "history_fields": ["user_mean"], "eval_args": args, "load_col": None})
    assert not list(Path("saved").glob("*/*.yaml"))
    assert 0 <= run_recbole_rella("Tree", name, config_dict={**tiny, **SMALL, "eval_args": args})["test_result"]["auc"] <= 1


def turn_answers_of_the_file(path, split, rows):
    """Other ratings in the lines of the test rows; the lines stay where they are, as they decide on RecBole's ids."""
    header, *lines = path.read_text().splitlines()
    fields = [field.split(":")[0] for field in header.split("\t")]
    times = set(rows.time[split])
    for place, line in enumerate(lines):
        cells = line.split("\t")
        if float(cells[fields.index("timestamp")]) in times:
            cells[fields.index("rating")] = str(6 - int(cells[fields.index("rating")]))
        lines[place] = "\t".join(cells)
    path.write_text("\n".join([header, *lines]) + "\n")


@pytest.mark.parametrize("model", ["LightGBM", pytest.param("XGBoost", marks=pytest.mark.slow)])
def test_test_answers_change_no_tree(model, movies):
    boosted(model)
    name, tiny = movies
    _, dataset, (_, _, test) = built("Bias", name, tiny)
    files, scores = [], []
    for run in ("before", "after"):
        run_recbole_rella(config_dict=on_the_split(model, movies, history_fields=["default"], run_folder=run))
        (trees,) = Path(run).glob("trees.*")
        files.append(trees.read_bytes())
        scores.append((Path(run) / "test_predictions.csv").read_text())
        turn_answers_of_the_file(Path(tiny["data_path"]) / name / f"{name}.inter", test, dataset.rows)
    assert files[0] == files[1] and scores[0] != scores[1]


def test_missing_packages_are_named(monkeypatch):
    import recbole_rella.quick_start as quick_start

    def missing(name):
        raise ModuleNotFoundError("No module named 'xgboost'", name="xgboost")

    monkeypatch.setattr(quick_start, "get_model", missing)
    with pytest.raises(
        ModelError, match=r"packages of RecBole's LightGBM and XGBoost .* found no xgboost: pip install '.\[trees\]'"
    ):
        find_model("LightGBM")
