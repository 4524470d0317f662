"""Write docs/keys.md, the table of all keys: ``python docs/write_keys.py``."""

from pathlib import Path

from recbole_rella.key_docs import markdown

if __name__ == "__main__":
    (Path(__file__).parent / "keys.md").write_text(markdown(), encoding="utf-8")
