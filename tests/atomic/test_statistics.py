"""The preprocessing of each shipped data set gives the rows that a plain reference computes from the original files."""

import logging
from collections import Counter, defaultdict

import numpy as np
import pytest
from originals import BOOKS, ORIGINALS, READERS
from test_prompts import SMALL

from recbole_rella.atomic.convert import convert
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.keys import ConfigError
from recbole_rella.quick_start import make_config
from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID


def built(name, tmp_path, **more):
    """The data set, split, and the (user, item) of each row by its own ids."""
    if not (tmp_path / "data").is_dir():
        convert(name, ORIGINALS[name](tmp_path / "original"), tmp_path / "data", report=lambda _: None)
    settings = {**SMALL, "data_path": str(tmp_path / "data"), "train_shots": None, **more}
    dataset = RowDataset(make_config("ReLLa", name, config_dict=settings))
    parts = dataset.build()
    users, items = (dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field))
    pairs = list(zip(users[dataset.rows.user].tolist(), items[dataset.rows.item].tolist()))
    return dataset, [part.inter_feat["row_id"].numpy() for part in parts], pairs


def movie_rows(folder, name, separator):
    """(user, item) in the order (time, user, item), listed movies or not; and those with 5 earlier ones of their user."""
    lines = [line.split(separator) for line in (folder / name).read_text().splitlines()]
    good = [r for r in lines if len(r) == 4 and r[0].isdigit() and r[1].isdigit() and r[3].isdigit()]
    good = [r for r in good if r[2].replace(".", "").isdigit() and float(r[2]) <= 5]
    ordered = sorted((int(time), int(user), int(item)) for user, item, _, time in good)
    seen, pairs, eligible = Counter(), [], []
    for _, user, item in ordered:
        pairs.append((str(user), str(item)))
        if seen[user] >= 5:
            eligible.append(pairs[-1])
        seen[user] += 1
    return pairs, eligible


@pytest.mark.parametrize(
    ("name", "file", "separator"),
    [("ml-1m", "ratings.dat", "::"), ("ml-25m", "ratings.csv", ","), ("ml-latest-small", "ratings.csv", ",")],
)
def test_movielens(name, file, separator, tmp_path):
    drawn = {"train_pool": 60, "eval_rows": 20} if name == "ml-25m" else {}
    dataset, parts, pairs = built(name, tmp_path, **drawn)
    expected, eligible = movie_rows(tmp_path / "original", file, separator)
    assert pairs == expected and len(eligible) > 300
    tenth = int(0.1 * len(eligible))
    bounds = {TRAIN: slice(0, -2 * tenth), VALID: slice(-2 * tenth, -tenth), TEST: slice(-tenth, None)}
    for code, part in zip((TRAIN, VALID, TEST), parts):
        whole = [pairs[row] for row in np.flatnonzero(dataset.rows.split == code)]
        assert whole == eligible[bounds[code]]
        used = [pairs[row] for row in part]
        assert set(used) <= set(whole) and len(set(used)) == len(used)
        assert len(used) == ({TRAIN: 60}.get(code, 20) if drawn else len(whole))
    assert Counter(dataset.rows.split.tolist())[NO_SPLIT] == len(expected) - len(eligible)
    assert all(np.array_equal(part, np.sort(part)) for part in parts[1:])


def test_book_crossing(tmp_path):
    dataset, parts, pairs = built("book-crossing", tmp_path)
    lines = (tmp_path / "original" / "BX-Book-Ratings.csv").read_text().replace('"', "").splitlines()
    given = [tuple(line.split(";")) for line in lines[1:6] + lines[10:]]
    given = [(user, isbn) for user, isbn, _ in given if isbn in BOOKS and (int(user) in READERS)]
    of_user = defaultdict(set)
    for user, isbn in given:
        of_user[user].add(isbn)
    # Readers of exactly 5 books have no target, those of 6 have one: more than 5 ratings.
    assert len(of_user["7"]) == 5 and len(of_user["8"]) == 6
    targets = {user for user in of_user if len(of_user[user]) > 5}
    tenth = int(0.1 * len(targets))
    assert list(map(len, parts)) == [len(targets) - 2 * tenth, tenth, tenth] and tenth >= 1
    used = np.concatenate(parts)
    assert sorted(pairs[row][0] for row in used) == sorted(targets)
    for row in used:
        user, isbn = pairs[row]
        history = [pairs[r][1] for r in dataset.histories.of(row)]
        assert len(history) == len(of_user[user]) - 1 and {*history, isbn} == of_user[user]
    # The order is random: neither that of the file nor that of the books, and another one with another seed.
    order = [isbn for user, isbn in pairs if user == "1"]
    assert order not in (sorted(order), sorted(order, key=list(BOOKS).index)) and len(order) == 40
    others = built("book-crossing", tmp_path, history_shuffle_seed=43)[2]
    assert sorted(others) == sorted(pairs) and others != pairs


def test_the_random_order_depends_on_the_rows_alone(tmp_path):
    """Not on the order of the lines, nor on columns and ids that RecBole makes of it."""
    _, _, pairs = built("book-crossing", tmp_path)
    path = tmp_path / "data" / "book-crossing" / "book-crossing.inter"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *sorted(lines, key=hash)]) + "\n")
    load_col = {"inter": ["user_id", "item_id", "rating"]}
    unlisted = {"filter_inter_by_user_or_item": True, "val_interval": {"item_id": list(BOOKS), "user_id": list(map(str, READERS))}}
    prompts = {"prompt_profile": "", "prompt_item": "{{ item.item_id }}", "retrieval_sentence": "{{ item.item_id }}"}
    settings = {"load_col": load_col, "category_field": None, **unlisted, **prompts}
    assert built("book-crossing", tmp_path, **settings)[2] == pairs


# Two of the items in the rows are not listed.
COUNTS = {"users": 24, "items": 42, "listed_users": 24, "listed_items": 40}


def test_counts_as_published(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset, parts, pairs = built("ml-1m", tmp_path)
    sizes = {
        "rows": len(pairs),
        "split_rows": sum(map(len, parts)),
        "train": len(parts[0]),
        "valid": len(parts[1]),
        "test": len(parts[2]),
    }
    # Parts that others rounded in another way are no other parts.
    rounded = {**sizes, "train": sizes["train"] - 2, "test": sizes["test"] + 2}
    built("ml-1m", tmp_path, expected_counts={**COUNTS, **rounded}, train_shots=7)
    assert "expected_counts: found as published" in caplog.text and "comparable" not in caplog.text


def test_other_counts_than_published_are_told_of(tmp_path, caplog):
    _, parts, pairs = built("ml-1m", tmp_path)
    built("ml-1m", tmp_path, expected_counts={**COUNTS, "users": 25, "test": len(parts[2]) + 3, "rows": len(pairs) - 1})
    assert (
        f"expected_counts: expected users 25 (found 24), test {len(parts[2]) + 3} (found {len(parts[2])}), rows {len(pairs) - 1} "
        f"(found {len(pairs)}). Results on these files are not comparable with published ones: is this the complete, original "
        "data set?" in caplog.text
    )
    assert "Your own" not in caplog.text
    # As shipped: with the user's own filters they are named, as they may be why.
    caplog.clear()
    convert("ml-1m", tmp_path / "original", tmp_path / "data", report=lambda _: None)
    own = {key: value for key, value in SMALL.items() if key not in ("expected_counts", "train_shots")}
    settings = {**own, "data_path": str(tmp_path / "data"), "user_inter_num_interval": "[20,inf)", "min_history": 6}
    RowDataset(make_config("ReLLa", "ml-1m", config_dict=settings)).build()
    (warning,) = [record.message for record in caplog.records if "expected_counts" in record.message]
    assert warning.startswith("expected_counts: expected users 6040 (found ") and "test 97002 (found " in warning
    assert "Your own user_inter_num_interval, min_history may be why." in warning


def test_counts_that_a_run_cannot_know_are_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    built("ml-25m", tmp_path, train_pool=None, eval_rows=None, expected_counts={"listed_users": 7, "users": 24})
    assert "expected_counts: found as published" in caplog.text


def test_expected_counts_names_counts():
    with pytest.raises(
        ConfigError, match="expected_counts: expected a dictionary {name: integer} with names among users, items, rows"
    ):
        make_config("ReLLa", "ml-100k", config_dict={"expected_counts": {"readers": 4}})
