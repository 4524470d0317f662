"""Where the atomic files of a data set are found, and what is said where they are not."""

import contextlib
from pathlib import Path

from recbole_rella import processes
from recbole_rella.atomic.convert import how_to_convert
from recbole_rella.atomic.reading import fast_reading
from recbole_rella.errors import RellaError


class DatasetError(RellaError):
    """The files of a data set are not there."""


class ReadsAtomicFiles:
    """Mixed into a data set class of RecBole.

    Attributes:
        listed (dict): users and items -> how many rows the .user and .item files have, None where none was loaded.
    """

    def _load_data(self, token, dataset_path):
        folder = Path(dataset_path)
        if not folder.exists():
            self._download()
        if self.config["benchmark_filename"] is None:
            token = self._stem(token, folder)
        super()._load_data(token, dataset_path)
        feats = {"users": self.user_feat, "items": self.item_feat}
        self.listed = {name: None if feat is None else len(feat) for name, feat in feats.items()}

    def _load_feat(self, filepath, source):
        with fast_reading():
            return super()._load_feat(filepath, source)

    def _stem(self, token, folder):
        """The name of the files in a folder: the data set's, or whatever the only .inter file there is called."""
        found = sorted(path.stem for path in folder.glob("*.inter"))
        if token in found:
            return token
        if len(found) == 1:
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
            if list(folder.glob("*.inter")):
                return  # In a single process RecBole fails after the download, at a barrier of processes that are not there.
            with contextlib.suppress(OSError):
                folder.rmdir()
            cause = f"no such folder, and RecBole's download failed ({type(error).__name__}: {error})"
            raise DatasetError(self._missing(folder, cause)) from error
