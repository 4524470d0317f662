"""Where the atomic files of a data set are found, how RecBole gets what is in them, and what is said where they are not there."""

import io
import shutil
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as recbole_dataset

from recbole_rella import processes
from recbole_rella.atomic.convert import how_to_convert
from recbole_rella.atomic.errors import NAMED, DatasetError, and_more, plural
from recbole_rella.atomic.reading import AtomicFile
from recbole_rella.data.column_names import names_in_recbole
from recbole_rella.rows.account import Account


class _PandasThatReads(types.ModuleType):
    """The pandas module, but for ``read_csv``."""

    def __init__(self, read_csv):
        super().__init__("pandas")
        self.read_csv = read_csv

    def __getattr__(self, name):
        return getattr(pd, name)


@contextmanager
def _given_to_recbole(file, names):
    """Within this context RecBole's Dataset, whichever file it opens, gets the header and the rows of this one.

    Args:
        file (AtomicFile): what it gets.
        names (list of str): name:type of its columns, as RecBole shall know them.
    """

    def read_csv(_, *, usecols, dtype, **__):
        return file.read(names, usecols, dtype)

    recbole_dataset.pd = _PandasThatReads(read_csv)
    recbole_dataset.open = lambda *_, **__: io.StringIO(file.separator.join(names) + "\n")
    try:
        yield
    finally:
        recbole_dataset.pd = pd
        del recbole_dataset.open


class ReadsAtomicFiles:
    """Mixed into a data set class of RecBole.

    Attributes:
        account (Account): what became of the lines.
        listed (dict): users and items -> how many rows the .user and .item files have, None where none was loaded.
    """

    def _load_data(self, token, dataset_path):
        folder = Path(dataset_path)
        if not folder.exists():
            self._download()
        if self.benchmark_filename_list is None:
            token = self._stem(token, folder)
        self._check_load_col()
        self.account = Account()
        self._files = self._open(token, folder)
        self._names = names_in_recbole(self._loaded_columns(), self.config)
        self._say_what_is_odd()
        self._rows_of_files = []
        super()._load_data(token, dataset_path)
        feats = {"users": self.user_feat, "items": self.item_feat}
        self.listed = {name: None if feat is None else len(feat) for name, feat in feats.items()}

    def _open(self, token, folder):
        """Path -> AtomicFile, for all files that RecBole will read."""
        parts = self.benchmark_filename_list
        if parts is not None and (not isinstance(parts, list) or len(parts) != 3):
            raise DatasetError(
                f"benchmark_filename: expected the names of three parts, as ['train', 'valid', 'test'], found {parts!r}: rows are "
                "trained on, validated and tested. Divide the training rows in two, or leave the key out and set eval_args."
            )
        inter = ["inter"] if parts is None else [f"{part}.inter" for part in parts]
        more = self.config["additional_feat_suffix"] or []
        suffixes = [*inter, *(s for s in ("user", "item") if (folder / f"{token}.{s}").is_file()), *more]
        missing = [f"{token}.{suffix}" for suffix in suffixes if not (folder / f"{token}.{suffix}").is_file()]
        if missing:
            key = "additional_feat_suffix" if parts is None else "benchmark_filename"
            found = sorted(path.name for path in folder.iterdir())[:20]
            raise DatasetError(f"{key}: expected the files {', '.join(missing)} in {folder}, found {found}.")
        separator, encoding = self.config["field_separator"], self.config["encoding"] or "utf-8"
        of_sequences = self.config["seq_separator"]
        if not isinstance(of_sequences, str) or not of_sequences:
            raise DatasetError(f"seq_separator: expected what stands between two values of a cell, as ' ', found {of_sequences!r}.")
        files = {}
        for suffix in suffixes:
            file = AtomicFile(folder / f"{token}.{suffix}", separator, encoding)
            self._check_columns(file, suffix.rpartition(".")[2])
            files[file.path] = file
        self._check_same_columns([files[folder / f"{token}.{suffix}"] for suffix in inter])
        return files

    def _check_load_col(self):
        for key in ("load_col", "unload_col"):
            value = self.config[key]
            fits = isinstance(value, dict) and all(names == "*" or isinstance(names, list | tuple) for names in value.values())
            if value is not None and not fits:
                raise DatasetError(
                    f"{key}: expected a dictionary of columns by file, as {{'inter': ['user_id', 'item_id']}}, found {value!r}."
                )
        both = sorted(set(self.config["load_col"] or {}) & set(self.config["unload_col"] or {}))
        if both:
            raise DatasetError(f"load_col, unload_col: expected one of them for a file, found both for .{' and .'.join(both)}.")
        if self.config["load_col"] is not None and not self.config["load_col"].get("inter"):
            raise DatasetError(f"load_col: expected columns of the .inter file, found {self.config['load_col']}; add 'inter'.")

    def _check_columns(self, file, suffix):
        """The ids are there and are tokens, and load_col names columns that exist."""
        wanted, unwanted = super()._get_load_and_unload_col(suffix)
        if wanted == set():
            return
        absent = sorted((wanted or set()) - set(file.columns))
        if absent:
            raise DatasetError(
                f"load_col: expected columns of {file}, found {', '.join(absent)}, which it does not have; its columns are "
                f"{', '.join(file.columns)}."
            )
        fields = {"USER_ID_FIELD": self.uid_field, "ITEM_ID_FIELD": self.iid_field}
        keys = {"inter": list(fields), "user": ["USER_ID_FIELD"], "item": ["ITEM_ID_FIELD"]}.get(suffix, [])
        for key in keys:
            field = fields[key]
            kind = file.columns.get(field)
            if kind is None:
                found = ", ".join(f"{name}:{kind}" for name, kind in file.columns.items())
                raise DatasetError(
                    f"{key}: expected a column {field}:token in {file}, found {found}. Name it so in the header, or name "
                    f"in {key} the column that holds the ids."
                )
            if (wanted is not None and field not in wanted) or (unwanted is not None and field in unwanted):
                raise DatasetError(f"load_col: expected {field!r}, the ids, among the columns of {file} that are loaded; add it.")
            if kind != "token":
                raise DatasetError(
                    f"{key}: expected a column {field}:token in {file}, found {field}:{kind}. Ids are names, numbers too: write "
                    f"{field}:token in the header."
                )

    def _check_same_columns(self, files):
        first, *others = files
        for file in others:
            if set(file.columns.items()) != set(first.columns.items()):
                raise DatasetError(
                    f"benchmark_filename: expected the same columns in all parts, found {', '.join(first.columns)} in {first} and "
                    f"{', '.join(file.columns)} in {file}."
                )

    def _loaded_columns(self):
        """Suffix -> names of the columns that load_col and unload_col leave."""
        loaded = {}
        for file in self._files.values():
            suffix = file.path.suffix[1:]
            wanted, unwanted = super()._get_load_and_unload_col(suffix)
            loaded[suffix] = [
                name for name in file.columns if (wanted is None or name in wanted) and (unwanted is None or name not in unwanted)
            ]
        return loaded

    def _get_load_and_unload_col(self, source):
        """RecBole's, in the names that it is given (they are the files' in load_col and unload_col)."""
        columns = super()._get_load_and_unload_col(source)
        names = self._names[getattr(source, "value", source)]
        return tuple(chosen and {names.get(name, name) for name in chosen} for chosen in columns)

    def name_in_file(self, kind, field):
        """What the .user or .item file calls a column of user_feat or item_feat.

        Args:
            kind (str): user or item.
            field (str): RecBole's name of the column.
        """
        return {name: own for own, name in self._names.get(kind, {}).items()}.get(field, field)

    def columns_of(self, suffix):
        """The columns of a file that are loaded, as name:type, for messages; and the names of all.

        Args:
            suffix (str): inter, user or item; there is such a file.

        Returns:
            tuple: str; list of str.
        """
        columns = next(file.columns for file in self._files.values() if file.path.suffix == f".{suffix}")
        return ", ".join(f"{name}:{columns[name]}" for name in self._loaded_columns()[suffix]), list(columns)

    def _say_what_is_odd(self):
        for file in self._files.values():
            name = file.path.name
            if file.num_short:
                self.account.odd(
                    f"Fewer cells than the header in {plural(file.num_short, 'line')} of {name} (line "
                    f"{and_more(file.short, file.num_short)}): what is missing has no value."
                )
            if file.unquoted:
                self.account.note(f"Cells of {name} that stand in quotes are read without them, as those of a CSV writer.")
        for kind, names in self._names.items():
            for own, name in names.items():
                self.account.note(f"The column {own} of .{kind} is {name} in RecBole's settings, as another column has its name.")

    def _load_feat(self, filepath, source):
        suffix = getattr(source, "value", source)
        file, names = self._files[Path(filepath)], self._names[suffix]
        with _given_to_recbole(file, [f"{names.get(name, name)}:{kind}" for name, kind in file.columns.items()]):
            try:
                feat = super()._load_feat(filepath, source)
            except DatasetError:
                raise
            except ValueError:
                columns = [name for name in self._loaded_columns()[suffix] if file.columns[name].startswith("float")]
                file.check_numbers(columns, self.config["seq_separator"])
                raise
        if feat is None:
            return None
        ids = {"inter": [self.uid_field, self.iid_field], "user": [self.uid_field], "item": [self.iid_field]}.get(suffix, [])
        return self._with_ids(feat, file, ids, suffix)

    def _with_ids(self, feat, file, ids, suffix):
        """The rows that have their ids: RecBole keeps those without, in benchmark files, and may drop others for them."""
        missing = feat[ids].isna().any(axis=1).to_numpy()
        lines = and_more(file.line(np.flatnonzero(missing)[:NAMED]), missing.sum())
        if missing.any():
            reason = f"without {' or '.join(ids)} (line {lines})"
            if suffix == "inter":
                self.account.lost(int(missing.sum()), reason)
            else:
                self.account.odd(f"Left out of {file.path.name}: {plural(int(missing.sum()), 'line')} {reason}.")
            feat = feat[~missing]
        if suffix == "inter":
            self.account.rows_of(file.path.name, len(missing))
            self._rows_of_files.append((file, np.flatnonzero(~missing) if missing.any() else None, len(feat)))
        elif ids:
            twice = np.flatnonzero(feat[ids[0]].duplicated().to_numpy())
            if len(twice):
                first = [f"{feat[ids[0]].iloc[place]} in line {file.line([feat.index[place]])[0]}" for place in twice[:NAMED]]
                self.account.odd(
                    f"The {ids[0]} of an earlier line, which stays, in {plural(len(twice), 'line')} of {file.path.name} "
                    f"({and_more(first, len(twice))})."
                )
        return feat

    def lines_of(self, rows):
        """Where rows of the .inter file stand, in words.

        Args:
            rows (numpy.ndarray): int [n], places in what was loaded, before RecBole's filters.

        Returns:
            str: the line numbers of the first ones.
        """
        several = len(self._rows_of_files) > 1
        found = []
        for row in np.asarray(rows)[:NAMED].tolist():
            for file, kept, count in self._rows_of_files:
                # The places of one file are its own (rows without ids count); those of several follow one another.
                if not several or row < count:
                    line = file.line([row if kept is None or not several else kept[row]])[0]
                    found.append(f"{line} of {file.path.name}" if several else str(line))
                    break
                row -= count
        return f"line {and_more(found, len(rows))}"

    def _stem(self, token, folder):
        """The name of the files in a folder: the data set's, or whatever the only .inter file there is called."""
        found = sorted(path.stem for path in folder.glob("*.inter"))
        if token in found:
            return token
        if len(found) == 1:
            self.logger.warning(f"dataset: there is no {token}.inter in {folder}; {found[0]}.inter is read, the only one there.")
            return found[0]
        raise DatasetError(self._missing(folder, sorted(path.name for path in folder.iterdir())[:20] or "an empty folder"))

    def _missing(self, folder, found):
        name = self.dataset_name
        expected = f"dataset: expected RecBole's atomic files ({name}.inter, and where there are any {name}.user and {name}.item)"
        return f"{expected} in {folder}, found {found}. {how_to_convert(name)}".strip()

    def _download(self):
        """RecBole's download, where it knows the name; what it leaves behind when it fails is removed."""
        folder = Path(self.dataset_path)
        if processes.count() > 1:  # the others, which wait until this one has the data, would not come to RecBole's barrier
            raise DatasetError(self._missing(folder, "no such folder, which several processes do not download: start one alone"))
        try:
            super()._download()
        except Exception as error:  # network, zip, disk and RecBole's own: whatever went wrong, the remedy is the same
            # In a single process RecBole fails after the download, at a barrier of processes that are not there.
            if "process group" in str(error) and list(folder.glob("*.inter")):
                return
            shutil.rmtree(folder, ignore_errors=True)  # which was not there before: half a data set would be taken for one
            cause = f"no such folder, and RecBole's download failed ({type(error).__name__}: {error})"
            raise DatasetError(self._missing(folder, cause)) from error
