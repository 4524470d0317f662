"""RecBole's filters of rows, counted: which rows each of them removes, and why (law 12)."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_rella.atomic.errors import DatasetError, and_more, plural


def _plain(token):
    """An id without white space around it, and a whole number without zeros that say nothing; to find ids that mean the same."""
    token = token.strip()
    try:
        return str(int(float(token))) if float(token).is_integer() else token
    except (ValueError, OverflowError):
        return token


class CountsFilteredRows:
    """Mixed into a data set class of RecBole that has an Account; stands before ReadsAtomicFiles.

    Rows whose user or item has no line in the .user or .item file are kept, and named by their id, unless
    filter_inter_by_user_or_item is set.
    """

    # Where the rows that are left stood when they were loaded, as RecBole's filters leave them; None: all are left.
    _kept_places = None

    def _say_unused_filters(self):
        """RecBole filters no rows that come in parts."""
        defaults = {"user_inter_num_interval": "[0,inf)", "item_inter_num_interval": "[0,inf)"}
        keys = ("rm_dup_inter", "val_interval", "filter_inter_by_user_or_item", *defaults)
        unused = [key for key in keys if self.config[key] not in (None, False, {}, defaults.get(key))]
        if self.benchmark_filename_list is not None and unused:
            self.account.odd(f"With benchmark_filename rows are not filtered: {', '.join(unused)} have no effect.")

    def rows_in_file(self, mask):
        """Where rows stood when they were loaded.

        Args:
            mask (numpy.ndarray): bool [rows], of the rows that RecBole's filters left.

        Returns:
            numpy.ndarray: int64, ascending, places in what was loaded.
        """
        return np.flatnonzero(mask) if self._kept_places is None else np.sort(self._kept_places[mask])

    @contextmanager
    def _counted(self, key, why):
        """Counts the rows that go within this context."""
        before = self.inter_feat.index
        yield
        if len(self.inter_feat) < len(before):
            gone = np.sort(before.difference(self.inter_feat.index).to_numpy())
            self.account.lost(len(gone), f"removed by {key}{why()} ({self.lines_of(gone)})", asked_for=True)

    def _remove_duplication(self):
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return super()._remove_duplication()
        with self._counted(f"rm_dup_inter: {keep}", lambda: ""):
            # RecBole's sort leaves rows of the same time in any order; which of them stays must not depend on the file's.
            inter, ids = self.inter_feat, [self.uid_field, self.iid_field]
            time = [self.time_field] if self.time_field in inter else []
            threshold = self.config["threshold"]  # which is checked where labels are made of it
            answers = [self.config["RATING_FIELD"], self.label_field, *(threshold if isinstance(threshold, dict) else ())]
            columns = list(dict.fromkeys([*time, *ids, *(field for field in answers if field in inter)]))
            inter.sort_values(columns, kind="stable", inplace=True)
            if time:
                inter.drop_duplicates([*ids, *time], keep=keep, inplace=True)
            super()._remove_duplication()

    def _filter_by_field_value(self):
        intervals = self.config["val_interval"] or {}
        for field, kept in intervals.items():
            if field not in self.field2type:
                raise DatasetError(
                    f"val_interval: expected loaded columns, found {field!r}; loaded are {', '.join(self.field2type)}."
                )
            kind = self.field2type[field]
            if kind in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                raise DatasetError(
                    f"val_interval: expected columns of one value a line, found {field}:{kind.value}; filter the lines of the file."
                )
            if kind == FeatureType.TOKEN and not (isinstance(kept, list | tuple) and all(isinstance(one, str) for one in kept)):
                raise DatasetError(
                    f"val_interval: expected for {field}:token a list of the texts that are kept, as ['a', '7'], found {kept!r}."
                )
        feats = [(self.user_feat, self.uid_field), (self.item_feat, self.iid_field)] if intervals else []
        before = [(feat, field, feat[field].copy()) for feat, field in feats if feat is not None]
        with self._counted("val_interval", lambda: ""):
            super()._filter_by_field_value()
            # The rows of users and items that were removed go with them.
            for feat, field, ids in before:
                removed = ids[~ids.isin(feat[field])]
                self.inter_feat.drop(self.inter_feat.index[self.inter_feat[field].isin(removed)], inplace=True)

    def _filter_inter_by_user_or_item(self):
        with self._counted("filter_inter_by_user_or_item", lambda: ", as their user or item has no line of its own"):
            super()._filter_inter_by_user_or_item()

    def _filter_by_inter_num(self):
        keys = [f"{kind}_inter_num_interval" for kind in ("user", "item")]
        keys = [key for key in keys if self.config[key] not in (None, "[0,inf)")]  # RecBole's default
        with self._counted(" and ".join(keys), lambda: ""):
            super()._filter_by_inter_num()

    def _parse_intervals_str(self, intervals_str):
        """RecBole's, which leaves out what is no interval, and then removes some other row."""
        if intervals_str is None:
            return None
        try:
            found = super()._parse_intervals_str(intervals_str)
        except (ValueError, IndexError):
            found = []
        if len(found) < len(str(intervals_str).split(";")) or any(low > high for _, low, high, _ in found):
            raise DatasetError(
                "val_interval, user_inter_num_interval, item_inter_num_interval: expected intervals as '[5,inf)' or '[1,2];[4,5]', "
                f"found {intervals_str!r}."
            )
        return found

    def _reset_index(self):
        if self.inter_feat.empty:
            self.account.kept = 0
            self._check_ids_are_alike()
            raise DatasetError(f"Expected rows after RecBole's filters, found none. {self.account.rows()}")
        for name, feat in (("user", self.user_feat), ("item", self.item_feat)):
            if feat is not None and feat.empty:
                raise DatasetError(f"Expected lines of the .{name} file after RecBole's filters, found none; check val_interval.")
        index = self.inter_feat.index
        self._kept_places = None if isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1 else index.to_numpy()
        super()._reset_index()

    def _remap_ID_all(self):
        super()._remap_ID_all()
        for kind, field in (("user", self.uid_field), ("item", self.iid_field)):
            self._check_unlisted(kind, field, getattr(self, f"{kind}_feat"))

    def _check_unlisted(self, kind, field, feat):
        """Say whose rows have no line in the .user or .item file, and find ids that are only written in another way."""
        tokens = self.field2id_token[field]
        in_rows = np.zeros(len(tokens), dtype=bool)
        in_rows[self.inter_feat[field].to_numpy()] = True
        spaced = [str(token) for token in tokens[1:] if token != token.strip()]
        if spaced:
            raise DatasetError(
                f"{field}: expected ids without white space around them, found {plural(len(spaced), 'id')} with some "
                f"({and_more(map(repr, spaced), len(spaced))}); remove it from the files."
            )
        if feat is None:
            return
        listed = np.zeros(len(tokens), dtype=bool)
        listed[feat[field].to_numpy()] = True
        unlisted = np.flatnonzero(in_rows & ~listed)
        if len(unlisted):
            shown = "they are shown by their id" if kind == "item" else "their profiles have no field but the id"
            self._check_written_alike(kind, field, tokens[unlisted], tokens[listed], not (in_rows & listed).any())
            self.account.odd(
                f"No line in the .{kind} file for {len(unlisted)} of {int(in_rows.sum())} {kind}s in the rows "
                f"({and_more(tokens[unlisted], len(unlisted))}): their rows are kept, and {shown} "
                "(filter_inter_by_user_or_item: True leaves them out)."
            )

    def _check_ids_are_alike(self):
        """As no row is left: because the ids of the files are written in two ways?"""
        for kind, field in (("user", self.uid_field), ("item", self.iid_field)):
            feat, file = getattr(self, f"{kind}_feat"), next(file for file in self._files.values() if file.path.suffix == ".inter")
            if feat is not None and not feat.empty:
                ids = file.read(list(file.columns), [field], {field: str})[field].dropna().unique()
                self._check_written_alike(kind, field, ids, feat[field].to_numpy(), True)

    def _check_written_alike(self, kind, field, unlisted, listed, all_unlisted):
        known = {_plain(token): str(token) for token in listed}
        pairs = [
            (str(token), known[_plain(token)]) for token in unlisted if _plain(token) in known and known[_plain(token)] != token
        ]
        # 007 and 7 may be two ids, unless none is as the other file has it; 7.0 and 7 are not.
        if not all_unlisted:
            pairs = [pair for pair in pairs if "." in "".join(pair)]
        if pairs:
            raise DatasetError(
                f"{field}: expected ids written alike in all files, found {plural(len(pairs), 'id')} of the .inter file that the "
                f".{kind} file writes in another way ({and_more([f'{a!r} and {b!r}' for a, b in pairs], len(pairs))}); write "
                "the same text in both (an id that was a float column somewhere got its .0 there)."
            )
