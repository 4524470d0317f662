"""Files are whole or as they were, and nothing takes the place of what is something else or somebody else's."""

import os
from pathlib import Path

import pytest

from recbole_rella.files import OutputError, check_file, check_folder, replacing, replacing_folder


@pytest.fixture
def full():
    """A folder of the user's."""
    Path("full").mkdir()
    Path("full/precious").write_text("precious")
    yield Path("full")
    assert Path("full/precious").read_text() == "precious"


def make(folder, text="new"):
    folder.mkdir()
    (folder / "inner").write_text(text)


def test_replacing_keeps_the_old_file_and_leaves_no_rest():
    Path("file").write_text("old")
    with pytest.raises(RuntimeError), replacing("file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert Path("file").read_text() == "old" and os.listdir() == ["file"]
    with replacing(Path("file")) as temporary:
        temporary.write_text("new")
    assert Path("file").read_text() == "new" and os.listdir() == ["file"]


@pytest.mark.parametrize("name", ["folder", "old"])
def test_a_folder_of_our_own_is_replaced(name):
    for text in ("new", "newer"):
        with replacing_folder(name, own=True) as temporary:
            make(temporary, text)
    assert Path(name, "inner").read_text() == "newer" and os.listdir() == [name]


def test_no_file_takes_the_place_of_a_folder(full):
    with pytest.raises(OutputError, match="Expected the name of a file, found full, which is a folder: name a file in it"):
        with replacing(full):
            pytest.fail("work began")
    with pytest.raises(OSError), replacing("meanwhile") as temporary:
        temporary.write_text("new")
        make(Path("meanwhile"))
    assert Path("meanwhile/inner").is_file()


def test_no_folder_takes_the_place_of_what_is_there(full):
    Path("file").write_text("precious")
    Path("link").symlink_to("nowhere")
    for path, found in (
        ("full", "found .*full, in which is something"),
        ("file", "found something else"),
        ("link", "something else"),
    ):
        with pytest.raises(OutputError, match=found), replacing_folder(path):
            pytest.fail("work began")
    with pytest.raises(OSError), replacing_folder("meanwhile") as temporary:
        make(temporary)
        make(Path("meanwhile"), "theirs")
    assert Path("meanwhile/inner").read_text() == "theirs"
    Path("empty").mkdir()
    Path("to_empty").symlink_to("empty")
    with replacing_folder("to_empty") as temporary:
        make(temporary)
    assert Path("empty/inner").is_file() and Path("to_empty").is_symlink() and Path("file").read_text() == "precious"


def test_a_place_is_checked_before_anything_is_made(full):
    Path("file").write_text("")
    os.mkfifo("pipe")
    with pytest.raises(OutputError, match="^output: expected the name of a file, found pipe, which is none"):
        check_file("pipe", "output")
    for path in ("file/new", "file/new/er"):
        with pytest.raises(OutputError, match=r"^output: expected a folder at .*file, found something else\. Name another place"):
            check_file(path, "output")
        with pytest.raises(OutputError, match="^output: expected a folder at .*file"):
            check_folder(path, "output")
    assert check_file("file") == Path("file") and check_file("new/er/file") == Path("new/er/file")
    assert check_folder("full") == full and check_folder("new/er") == Path("new/er")
    assert sorted(os.listdir()) == ["file", "full", "pipe"]


@pytest.mark.parametrize("path", ["mine", "./full/../mine", "link", "hard", "absolute", "full/link/../mine"])
def test_one_file_is_one_by_any_spelling(path, full):
    Path("mine").write_text("requests")
    Path("link").symlink_to("mine")
    Path("full/link").symlink_to(".")
    os.link("mine", "hard")
    path = str(Path("mine").resolve()) if path == "absolute" else path
    message = r"^output: expected another place than that of requests \(.*\), found .*, which would replace it"
    for one, other in (("mine", path), (path, "mine")):
        with pytest.raises(OutputError, match=message):
            check_file(one, "output", [("other", "elsewhere"), ("requests", other)])
    with pytest.raises(OutputError, match="expected another place than that of"):
        check_file("new", "output", [("folder", "new/er")])
    assert check_file("full/new", "output", [("folder", "full"), ("requests", path)]) == Path("full/new")
