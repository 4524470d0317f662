"""Item vectors: three encoders, PCA, the cache."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_llm.__main__ import minilm
from recbole_rella.llm.backbone import Backbone
from recbole_rella.retrieval.encoder import HiddenStateEncoder, SentenceTransformersEncoder, TfidfEncoder
from recbole_rella.retrieval.item_space import MixedSpace, item_space
from recbole_rella.retrieval.subr import similarity

SENTENCES = [
    f"{genre} Story {number} is a {genre.lower()} movie." for number in range(6) for genre in ("Comedy", "Drama", "Horror")
]


class Counting:
    identity = "counting"

    def __init__(self, dimension=4):
        self.calls, self.dimension = 0, dimension

    def encode(self, sentences):
        self.calls += 1
        random = np.random.default_rng(0)
        return random.normal(size=(len(sentences), self.dimension)).astype(np.float32)


def test_tfidf_equals_scikit_learn(tmp_path):
    vectors = item_space(SENTENCES, TfidfEncoder(), None, "cosine", tmp_path).vectors
    plain = TfidfVectorizer(token_pattern=r"(?u)\w+").fit_transform(SENTENCES).toarray()
    np.testing.assert_allclose(vectors @ vectors.T, plain @ plain.T, atol=1e-5)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("sparse", [True, False])
def test_pca_equals_scikit_learn(metric, sparse, tmp_path):
    random = np.random.default_rng(0)  # words of unequal frequency: no two axes are equally important
    sentences = [" ".join(f"w{word}" for word in random.geometric(0.3, size=8)) for _ in range(40)]
    encoder = TfidfEncoder() if sparse else Counting(9)
    vectors = item_space(sentences, encoder, 3, metric, tmp_path).vectors
    full = encoder.encode(sorted(set(sentences)))
    full = (full.toarray() if sparse else full)[np.searchsorted(sorted(set(sentences)), sentences)]
    plain = PCA(3, svd_solver="full").fit_transform(full)
    plain = normalize(plain) if metric == "cosine" else plain
    np.testing.assert_allclose(vectors @ vectors.T, plain @ plain.T, atol=1e-4)  # the signs of axes are free


def test_pca_is_skipped_where_there_is_no_more(tmp_path):
    assert item_space(SENTENCES, Counting(4), 512, "dot", tmp_path).vectors.shape == (len(SENTENCES), 4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("budget", [1, 64, 10_000])
def test_hidden_states_exclude_padding(pooling, family, budget, llms):
    encoder = HiddenStateEncoder(Backbone(llms(family), "cpu"), pooling, budget)
    sentences = ["Heat", "A much longer sentence about a movie of 1995.", "Comedy Story 1"]
    vectors = encoder.encode(sentences)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llms(family)), AutoTokenizer.from_pretrained(llms(family))
    for sentence, vector in zip(sentences, vectors):
        with torch.no_grad():
            states = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0]
        expected = states.mean(0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_sentence_transformers_by_folder(tmp_path, llms):
    """Any folder that sentence-transformers loads: here one that it makes of a plain encoder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(llms("qwen2"))
    plain = tmp_path / "plain"
    BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain))
    SentenceTransformer(modules=[transformer, Pooling(16)]).save(str(tmp_path / "encoder"))
    encoder = SentenceTransformersEncoder(str(tmp_path / "encoder"), "cpu")
    expected = SentenceTransformer(str(tmp_path / "encoder")).encode(SENTENCES)
    np.testing.assert_allclose(encoder.encode(SENTENCES), expected, atol=1e-6)
    before = encoder.identity
    weights = next((tmp_path / "encoder").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert SentenceTransformersEncoder(str(tmp_path / "encoder"), "cpu").identity != before


@pytest.mark.skipif(minilm() is None, reason="no sentence encoder is installed")
def test_a_real_encoder_knows_genres():
    vectors = normalize(
        SentenceTransformersEncoder(str(minilm()), "cpu").encode(["a romantic movie", "a love story", "a war film"])
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_cache_depends_on_all_it_should(tmp_path):
    encoder = Counting()
    first = item_space(SENTENCES, encoder, None, "dot", tmp_path).vectors
    np.testing.assert_array_equal(item_space(SENTENCES, encoder, None, "dot", tmp_path).vectors, first)
    assert encoder.calls == 1
    item_space(SENTENCES[:-1] + ["Another"], encoder, None, "dot", tmp_path)
    item_space(SENTENCES, encoder, 2, "dot", tmp_path)
    item_space(SENTENCES, encoder, None, "cosine", tmp_path)
    encoder.identity = "other weights"
    item_space(SENTENCES, encoder, None, "dot", tmp_path)
    assert encoder.calls == 5


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:150] + b"\xff\xfe" + b[152:], lambda b: b""])
def test_a_damaged_cache_is_rebuilt(damage, tmp_path, caplog):
    encoder = Counting()
    first = item_space(SENTENCES, encoder, None, "dot", tmp_path).vectors
    (file,) = tmp_path.glob("item-space-*.npz")
    file.write_bytes(damage(file.read_bytes()))
    np.testing.assert_array_equal(item_space(SENTENCES, encoder, None, "dot", tmp_path).vectors, first)
    assert encoder.calls == 2 and "is damaged" in caplog.text
    item_space(SENTENCES, encoder, None, "dot", tmp_path)
    assert encoder.calls == 2


def test_equal_sentences_get_equal_vectors(tmp_path):
    vectors = item_space(["a", "b", "a", "c", "a"], Counting(), None, "cosine", tmp_path).vectors
    assert (vectors[0] == vectors[2]).all() and (vectors[0] == vectors[4]).all() and (vectors[0] != vectors[1]).any()


def test_vectors_that_are_not_finite(tmp_path):
    encoder = Counting()
    encoder.encode = lambda sentences: np.full((len(sentences), 2), np.nan, dtype=np.float32)
    with pytest.raises(ValueError, match="expected finite item vectors, found others from counting"):
        item_space(SENTENCES, encoder, None, "cosine", tmp_path)


class Letters:
    """An encoder whose vector of a sentence depends on the sentence alone: how often each letter stands in it."""

    identity = "letters"

    def encode(self, sentences):
        return np.array([[s.count(c) for c in "abcdefgh"] for s in sentences], dtype=np.float32)


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("encoder, dimension", [(Letters(), None), (Letters(), 3), (TfidfEncoder(), None), (TfidfEncoder(), 3)])
def test_an_item_outside_the_catalogue_is_placed_as_one_inside(metric, encoder, dimension, tmp_path):
    random = np.random.default_rng(1)
    sentences = [" ".join(random.choice(list("abcdefgh"), size=7, p=np.arange(1, 9) / 36)) for _ in range(30)]
    for _ in range(2):  # made now, and read from the cache
        space = item_space(sentences, encoder, dimension, metric, tmp_path)
        np.testing.assert_allclose(space._encode(np.array(sentences[3:9])), space.vectors[3:9], atol=1e-4)


# Text and collaborative vectors side by side.


def parts_of(dimension, tmp_path, encoder=None):
    """Texts and collaborative vectors of 20 items, padding first, of quite another scale; of the last nothing is known."""
    random = np.random.default_rng(2)
    sentences = ["", *(" ".join(random.choice(list("abcdefgh"), size=9, p=np.arange(1, 9) / 36)) for _ in range(20))]
    collaborative = 50 * random.normal(size=(21, 5)).astype(np.float32)
    collaborative[[0, -1]] = 0
    return item_space(sentences, encoder or Letters(), dimension, "dot", tmp_path), collaborative


def ranked(vectors, metric):
    """For every item all others, closest first."""
    vectors = normalize(vectors) if metric == "cosine" else vectors
    return [np.argsort(-similarity(vectors, query, metric)[1:-1], kind="stable").tolist() for query in vectors[1:-1]]


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("dimension", [None, 3])
def test_a_mixture_at_its_ends_is_one_of_its_parts(dimension, metric, tmp_path):
    text, collaborative = parts_of(dimension, tmp_path)
    assert ranked(MixedSpace(text, collaborative, 1.0, metric).vectors, metric) == ranked(collaborative, metric)
    # Equal counts of letters are equal texts: similarities instead of an order among ties.
    mixed, plain = (
        MixedSpace(text, collaborative, 0.0, metric).vectors,
        text.vectors / np.linalg.norm(text.vectors[1:], axis=1).max(),
    )
    plain = normalize(plain) if metric == "cosine" else plain
    for query in range(21):
        expected = similarity(plain, plain[query], metric)
        np.testing.assert_allclose(similarity(mixed, mixed[query], metric), expected, atol=1e-6)
    assert ranked(collaborative, metric) != ranked(text.vectors, metric)


@pytest.mark.parametrize("weight", [0.2, 0.5])
@pytest.mark.parametrize("encoder", [Letters(), TfidfEncoder()])
def test_a_mixture_weighs_similarities_of_parts_of_one_scale(encoder, weight, tmp_path):
    text, collaborative = parts_of(None, tmp_path, encoder)
    words, learned = (part.astype(float) / np.linalg.norm(part[1:], axis=1).max() for part in (text.vectors, collaborative))
    for metric in ("dot", "l2"):
        vectors = MixedSpace(text, collaborative, weight, metric).vectors
        assert vectors.dtype == np.float32 and vectors.shape == (21, words.shape[1] + 5)
        expected = (1 - weight) * similarity(words, words[3], metric) + weight * similarity(learned, learned[3], metric)
        np.testing.assert_allclose(similarity(vectors, vectors[3], metric), expected, atol=1e-6)
    # At one half this is RALLRec's: both parts divided by their largest norms, side by side, by cosine.
    half = MixedSpace(text, collaborative, 0.5, "cosine").vectors
    np.testing.assert_allclose(half, normalize(np.hstack([words, learned])), atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_an_item_of_which_only_a_text_is_known_is_mixed_with_zeros(metric, tmp_path):
    text, collaborative = parts_of(3, tmp_path)
    space = MixedSpace(text, collaborative, 0.4, metric)
    known = space.encode(space.sentences[-2:])
    np.testing.assert_allclose(known[1], space.vectors[-1], atol=1e-6)
    assert not known[:, 3:].any() and space.vectors[-2, 3:].any()
    new = space.encode(["a b c d e f g h a"])
    unmixed = text.encode(["a b c d e f g h a"]) / np.linalg.norm(text.vectors[1:], axis=1).max() * np.sqrt(0.6)
    np.testing.assert_allclose(new[:, :3], normalize(unmixed) if metric == "cosine" else unmixed, atol=1e-6)
    # An equal one, of what the arrays hold.
    again = MixedSpace(text, space.arrays["collaborative"], 0.4, metric)
    np.testing.assert_array_equal(again.vectors, space.vectors)


def test_a_mixture_is_named_by_both_parts_and_their_weight(tmp_path):
    text, collaborative = parts_of(None, tmp_path)
    other = collaborative.copy()
    other[3, 3] += 1e-3
    names = [
        MixedSpace(text, part, weight, "cosine").identity for part, weight in ((collaborative, 0.4), (other, 0.4), (other, 0.3))
    ]
    names.append(MixedSpace(parts_of(None, tmp_path, TfidfEncoder())[0], other, 0.3, "cosine").identity)
    assert len(set(names)) == 4 and names[0].startswith("mix of letters and vectors ") and names[0].endswith(", 0.4")
    unknown = Letters()
    unknown.identity = None
    assert MixedSpace(parts_of(None, tmp_path, unknown)[0], other, 0.3, "cosine").identity is None


def test_parts_that_say_nothing_or_no_number(tmp_path):
    text, collaborative = parts_of(None, tmp_path)
    assert np.isfinite(MixedSpace(text, np.zeros_like(collaborative), 0.5, "cosine").vectors).all()
    collaborative[4, 2] = np.nan
    with pytest.raises(ValueError, match="expected finite item vectors of crm, found others"):
        MixedSpace(text, collaborative, 0.5, "cosine")
