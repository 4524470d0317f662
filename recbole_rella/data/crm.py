"""What a conventional model has learned of items and users, for ReLLaX and for retrieval: the one reader of its finished run.

A conventional recommendation model (CRM) is any model that ran on our rows: FM, DIN, SIM and others. When its run ends, the
vectors of the best epoch are written into the run folder (vectors.npz) under the data set's own ids, with the name of the rows and
of their split. So its reader needs neither the model nor its data set, unpickles no checkpoint, and refuses vectors that were
learned from rows which this run holds out (law 1).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from recbole_rella.errors import RellaError
from recbole_rella.files import fingerprint, replacing
from recbole_rella.rows.draw import drawn
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.run_folder import VECTORS, read_run


class CrmError(RellaError):
    """A run has no vectors of a conventional model that could be used here."""


@dataclass(frozen=True, eq=False)
class Crm:
    """Vectors of a conventional model, in the internal ids of a data set.

    Attributes:
        model (str): its name.
        identity (str): names the vectors, 16 hexadecimal digits.
        items (numpy.ndarray): float32 [items, E]; zeros for padding and for items that the model does not have.
        users (numpy.ndarray or None): float32 [users, E']; None where the model has no vectors of users.
        row_ids (numpy.ndarray), rows (numpy.ndarray or None): the rows that it has representations of, int64 [n], ascending, and
            these, float32 [n, d], standardized; None where it has none.
    """

    model: str
    identity: str
    items: np.ndarray
    users: np.ndarray | None
    row_ids: np.ndarray
    rows: np.ndarray | None

    def with_vectors(self, items, users):
        """The same model with other vectors made of its own."""
        return replace(self, items=items, users=users)


def _split_identity(dataset):
    """Names all rows of a data set and the split that each belongs to."""
    return fingerprint(dataset.identity(), dataset.rows.split)


_KINDS = ("item", "user")
# Training rows of which a run leaves representations, at most: as many shots as anybody tunes an LLM with. Rows at a time.
_SHOTS, _AT_A_TIME = 2**17, 4096


def _fields(dataset):
    return dict(zip(_KINDS, (dataset.iid_field, dataset.uid_field)))


def vectors_of(model, dataset):
    """The vectors of items and users in a model: its own `item_vectors` and `user_vectors` (ours), else its embedding tables.

    Tables are those of RecBole's context-aware models (one for all fields), of its sequential models with features (DIN, DIEN), of
    BPR and its kind, and what a graph model gives in the place of its tables (LightGCN's `forward`).

    Args:
        model (torch.nn.Module): of RecBole, or ours.
        dataset (recbole.data.dataset.Dataset): that it was made with.

    Returns:
        dict: item, user -> float32 [n, E] in the internal ids of `dataset`; without a kind that the model has no vectors of.
    """
    found = {}
    with torch.no_grad():
        if hasattr(model, "norm_adj_matrix"):  # what LightGCN, NGCF and their kind score with
            users, items = model.forward()
            found = {"item": items, "user": users}
        for kind, field in _fields(dataset).items():
            if hasattr(model, f"{kind}_vectors"):
                found[kind] = torch.as_tensor(getattr(model, f"{kind}_vectors")())
            elif kind not in found and (table := _table(model, kind, field)) is not None:
                weight, begin = table
                found[kind] = weight[begin : begin + dataset.num(field)]
    return {kind: vectors.detach().float().cpu().numpy() for kind, vectors in found.items()}


def _table(model, kind, field):
    """The embeddings among which those of a field are, and the place at which they begin; None where there are none."""
    own = getattr(model, f"{kind}_embedding", None)
    if isinstance(own, torch.nn.Embedding):
        return own.weight, 0
    layer = getattr(model, "embedding_layer", model)
    parts = [getattr(layer, f"token_{name}", None) for name in ("embedding_table", "field_names", "field_offsets")]
    if isinstance(parts[0], torch.nn.ModuleDict):  # DIN and DIEN have one of each for users and for items
        parts = [part[kind] if part is not None and kind in part else None for part in parts]
    table, names, offsets = parts
    return (table.embedding.weight, int(offsets[names.index(field)])) if table is not None and field in (names or ()) else None


def learned_kinds(model, dataset):
    """The kinds whose vectors training has reached: RecBole gives LR a table, and DIN one of users, that they never use.

    Args:
        model (torch.nn.Module), dataset: as for `vectors_of`; right after training, while it holds gradients.

    Returns:
        tuple of str: of item and user.
    """
    tables = {kind: _table(model, kind, field) for kind, field in _fields(dataset).items()}
    return tuple(kind for kind, table in tables.items() if table is None or table[0].grad is not None)


def write_vectors(folder, model, dataset, kinds=_KINDS, parts=()):
    """Write the vectors of a model into its run folder, whole or not at all; nothing where it has none of items.

    A model that has `row_vectors(interaction)` (SIM) also leaves its representations of the validation and test rows, and of the
    first training rows that train_shots would draw.

    Args:
        folder (pathlib.Path): the run folder.
        model (torch.nn.Module): trained, with the weights of its best epoch.
        dataset (KeepsRows): that it was trained on, split.
        kinds (iterable of str): of item and user; those that training has reached.
        parts (iterable of KeepsRows): train, valid and test.
    """
    found = {kind: vectors for kind, vectors in vectors_of(model, dataset).items() if kind in kinds}
    if "item" not in found:
        return
    arrays = {f"{kind}_vectors": vectors for kind, vectors in found.items()}
    arrays |= {f"{kind}_ids": dataset.field2id_token[_fields(dataset)[kind]].astype(str) for kind in found}
    if hasattr(model, "row_vectors"):
        arrays |= _rows_of(model, parts)
    with replacing(Path(folder) / VECTORS) as temporary, open(temporary, "wb") as file:
        np.savez(file, split=np.array(_split_identity(dataset)), **arrays)


def _rows_of(model, parts):
    """The representations of rows, by ascending row_id; training rows are those by which they are standardized."""
    row_ids, vectors, trains = [], [], []
    for number, part in enumerate(parts):
        own = part.inter_feat[ROW_ID].numpy()
        places = drawn(own, _SHOTS, part.config["seed"]) if number == 0 else np.arange(len(own))
        for begin in range(0, len(places), _AT_A_TIME):
            some = places[begin : begin + _AT_A_TIME]
            with torch.no_grad():
                found = model.row_vectors(part[torch.from_numpy(some)].to(part.config["device"]))
            row_ids.append(own[some])
            vectors.append(found.float().cpu().numpy())
            trains.append(np.full(len(some), number == 0))
    if not row_ids:
        return {}
    row_ids, vectors, trains = (np.concatenate(columns) for columns in (row_ids, vectors, trains))
    order = np.argsort(row_ids)
    return {"row_ids": row_ids[order], "row_vectors": standardized(vectors, trains)[order]}


# A hidden unit that answers to few training rows has a deviation near 0, and others stand hundreds of deviations from its mean.
_FARTHEST = 5.0


def standardized(vectors, trained):
    """Vectors with mean 0 and deviation 1 in each column over those of training rows, none farther than 5 deviations from it.

    Args:
        vectors (numpy.ndarray): float32 [n, E].
        trained (numpy.ndarray): which of them training rows have: bool [n], or places.

    Returns:
        numpy.ndarray: float32 [n, E].
    """
    some = vectors[trained].astype(np.float64)
    deviation = some.std(axis=0)
    found = (vectors - some.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return np.clip(found, -_FARTHEST, _FARTHEST).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RowVectors:
    """A source of the representations of rows (see prompt/soft_places.py).

    Attributes:
        crm (Crm): with representations of rows.
    """

    crm: Crm

    def of_rows(self, row_ids):
        """Of rows about their own items, float32 [n, d].

        Raises:
            CrmError: it has none of some row.
        """
        places = np.minimum(np.searchsorted(self.crm.row_ids, row_ids), len(self.crm.row_ids) - 1)
        if (missing := self.crm.row_ids[places] != row_ids).any():
            raise CrmError(
                f"crm: expected {self.crm.model} to have a representation of every row, found none of {int(missing.sum())}, for "
                f"example row {np.asarray(row_ids)[missing][0]}: it has those of its validation and test rows, and of the first "
                f"{_SHOTS} training rows that its seed draws. Train it with the same seed, or set train_shots to less."
            )
        return self.crm.rows[places]

    def of(self, row, targets):
        """Of candidates in the place of a row's item: a run of the model has left none.

        Raises:
            CrmError: always.
        """
        raise CrmError(
            "crm: expected rows about their own items where spa_tokens or cflora_input has row, found candidates, of which "
            f"{self.crm.model} has left no representations. Use user or history in its place."
        )


def read_crm(run_folder, dataset):
    """The vectors of the conventional model of a finished run, for a data set.

    Args:
        run_folder (str or pathlib.Path): of the model's run.
        dataset (KeepsRows): split; the same rows and the same split as the model's.

    Returns:
        Crm: of the model.

    Raises:
        RunError: the folder holds no run; CrmError: it has no vectors, or the model saw other rows or another split.
    """
    run = read_run(run_folder)
    try:
        with np.load(run.folder / VECTORS, allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as error:  # of files and zip archives: whatever the damage, the remedy is the same
        raise CrmError(
            f"crm: expected the folder of a finished run of a conventional model with vectors of items ({VECTORS}), found one of "
            f"{run.model} in {run.folder} without ({type(error).__name__}). Models with item embeddings on the same rows write it "
            "when they are trained side by side or with split_file (FM, DCNV2, DIN, SIM; LR has none): run such a model again."
        ) from error
    expected, found = _split_identity(dataset), str(arrays["split"])
    if found != expected:
        raise CrmError(
            f"crm: expected a model that was trained on the training rows of this run (rows and split {expected}), found "
            f"{run.model} in {run.folder}, which saw others ({found}): it may have learned from rows that are held out here. Train "
            "it with the same data set, min_history, eval_args and seed, or both with one split_file."
        )
    users = None
    if "user_vectors" in arrays:
        users = _in_ids_of(dataset.field2id_token[dataset.uid_field], arrays["user_ids"], arrays["user_vectors"])
    items = _in_ids_of(dataset.field2id_token[dataset.iid_field], arrays["item_ids"], arrays["item_vectors"])
    identity = fingerprint(*(arrays[name] for name in sorted(arrays)))
    return Crm(run.model, identity, items, users, arrays.get("row_ids", np.empty(0, dtype=np.int64)), arrays.get("row_vectors"))


def _in_ids_of(tokens, ids, vectors):
    """Vectors by id -> by place in `tokens`, whose first place is padding; zeros where there is none."""
    places = {name: place for place, name in enumerate(ids.tolist()) if place}
    found = np.array([0, *(places.get(str(token), 0) for token in tokens[1:])])
    return np.where((found > 0)[:, None], vectors[found], np.float32(0)).astype(np.float32)


def item_vectors(run_folder, dataset):
    """The vectors of items of the conventional model of a finished run: see `read_crm`.

    Returns:
        numpy.ndarray: float32 [items, E], in the internal ids of `dataset`.
    """
    return read_crm(run_folder, dataset).items
