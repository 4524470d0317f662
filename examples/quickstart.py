# %% [markdown]
# # From two CSV files to scores
#
# A made-up book shop: 1,000 ratings (`ratings.csv`) of 48 books (`books.csv`) by 50 readers. Runs top to bottom in a minute or
# two, as a script or cell by cell in an editor that knows `# %%`.

# %%
from pathlib import Path

import pandas as pd

from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.serving.explanation import explain
from recbole_rella.serving.scorer import Scorer

here, data = Path(__file__).parent, Path("dataset/books")
data.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Your own data
#
# RecBole reads tables separated by tabs, whose columns say their type: `token` (an id or a word), `token_seq` (words), `float`.

# %%
columns = {"reader": "user_id:token", "book": "item_id:token", "stars": "rating:float", "time": "timestamp:float"}
pd.read_csv(here / "ratings.csv").rename(columns=columns).to_csv(data / "books.inter", sep="\t", index=False)
columns = {"book": "item_id:token", "title": "title:token_seq", "kind": "kind:token", "year": "year:token"}
pd.read_csv(here / "books.csv").rename(columns=columns).to_csv(data / "books.item", sep="\t", index=False)

# %% [markdown]
# ## Compare
#
# All models learn from the same rows and are scored on the same rows; `+history` tells a model of RecBole the past in numbers. What
# counts as liked is the one thing that must be said. How rows are worded may be said, too. On so few rows the embedded LLM learns
# little from words: `with_numbers` is ReLLa that is told the past in numbers, too, as its rivals are.

# %%
settings = {
    "threshold": {"rating": 4},
    "prompt_noun": "book",
    "prompt_item": "{{ item.title }} ({{ item.year }}), {{ item.kind }}",
    "retrieval_encoder": "tfidf",
}
table, runs, folder = run_side_by_side(["ReLLa", "with_numbers", "FM+history", "Tree"], "books", config_dict=settings)
print(table[["model", "reads", "test AUC", "LogLoss", "p"]].to_string(index=False))
print(f"more in {folder / 'report.html'}")

# %% [markdown]
# ## Explain a row
#
# What ReLLa saw of a reader and a book, and how much each shown book moved the score.

# %%
(run,) = folder.glob("with_numbers-*")
scorer = Scorer.load(run)
print(explain(scorer, "reader7,b12").text())

# %% [markdown]
# ## Score someone new
#
# A reader and a book that were in no file.

# %%
history = [("b3", 5, 1_710_000_000), ("b30", 2, 1_710_100_000), ("b5", 4, 1_710_200_000)]
unknown = {"title": "The Silent Witness", "kind": "crime", "year": "2025"}
print(scorer.score(["b7", "b40", unknown], history=history))
