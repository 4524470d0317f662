"""Soft tokens: a vector in the place of a word is what a word with that embedding is, in every LLM and in every way of scoring."""

import numpy as np
import pytest
import torch
from helpers import FAMILIES
from transformers import AutoModelForCausalLM

from recbole_rella.llm.backbone import add_lora
from recbole_rella.llm.rellax import EncodedNumbers
from recbole_rella.llm.scoring import answer_logits, forward_passes, p_yes, pad
from recbole_rella.llm.soft_tokens import SOFT_TOKENS, SoftTokenError, SoftTokens
from recbole_rella.prompt.soft_places import SoftPlaces

ITEMS, HISTORY = 6, ("user_mean", "item_count", "days_since_last")


def numbers(n, seed=0):
    """Numbers of histories, some of them missing."""
    random = np.random.default_rng(seed)
    found = random.exponential(5, (n, len(HISTORY))).astype(np.float32)
    found[random.random(found.shape) < 0.3] = np.nan
    return found


def with_soft_tokens(folder, of=("behaviours", "target", "user", "history"), init="xavier"):
    llm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager" if "gpt_oss" in folder else None).eval()
    places = SoftPlaces(first=llm.config.get_text_config().vocab_size, of=of, items=ITEMS)
    items = np.random.default_rng(1).normal(size=(ITEMS, 5)).astype(np.float32)
    torch.manual_seed(3)
    encoded = EncodedNumbers(HISTORY, numbers(40))
    return (
        llm,
        places,
        SoftTokens(llm, places, init, {"item": 1, "row": 2}, items, {"user": 4}, encoded),
    )


def prompts(places, n=9, seed=2):
    """Prompts of a few users, which begin alike, with soft tokens of items within and one of the row at the end."""
    random = np.random.default_rng(seed)
    ids = []
    for prompt in range(n):
        user = np.random.default_rng(100 + prompt % 3)
        beginning = [int(user.integers(0, places.first + ITEMS)) for _ in range(12)]
        item = places.first + int(random.integers(ITEMS))
        words = random.integers(0, places.first, 3).tolist()
        ids.append([*beginning, *words, item, *places.of_row, int(random.integers(places.first))])
    vectors = np.concatenate([random.normal(size=(3, 4)).astype(np.float32)[np.arange(n) % 3], numbers(n, seed)], axis=1)
    return ids, torch.from_numpy(vectors)


def by_kind(vectors):
    return {"user": vectors[:, :4], "history": vectors[:, 4:]}


def soft_embeddings(soft, numbered):
    """The embeddings that an LLM is given for ids beyond its vocabulary, in the place of others."""
    embedding = torch.nn.Embedding(soft.first, soft.projectors[next(iter(soft.projectors))][2].out_features)
    embedding.register_forward_pre_hook(soft._before)
    embedding.register_forward_hook(soft._behind)
    return embedding(numbered)


def plain_p_yes(llm, soft, places, ids, vector, answers):
    """P(yes) of one prompt from embeddings that are put together by hand."""
    rows = []
    for token in ids:
        if token < places.first:
            rows.append(llm.get_input_embeddings().weight[token])
        elif token < places.first + ITEMS:
            rows.append(soft.projectors["item"](soft.table[token - places.first]))
        else:
            rows.append(soft.projectors["user"](vector[:4]) + soft.projectors["history"](soft.history(vector[None, 4:]))[0])
    with torch.no_grad():
        logits = llm(inputs_embeds=torch.stack(rows)[None], use_cache=False).logits[0, -1]
    return torch.softmax(logits[list(answers)].float(), dim=-1)[0].item()


@pytest.mark.parametrize("family", [*FAMILIES, "llama-3", "gemma-2"])
def test_law_3_holds_with_soft_tokens(family, llms, monkeypatch):
    """In padded batches and in trees alike: P(yes) is that of the prompt alone, its embeddings put together by hand."""
    llm, places, soft = with_soft_tokens(llms(family))
    ids, vectors = prompts(places)
    lengths = torch.tensor([len(i) for i in ids])
    scores = {}
    with soft.numbered(pad(ids), by_kind(vectors)) as numbered:
        for way, cost in (("trees", 0.0), ("batches", float("inf"))):
            monkeypatch.setattr("recbole_rella.llm.scoring._cost_of_trees", lambda *_, cost=cost: cost)
            scores[way] = p_yes(llm, numbered, lengths, (3, 4), 4096, "cpu")
            assert (forward_passes(llm, numbered, lengths, 4096)[1] is not None) == (way == "trees")
        alone = [p_yes(llm, numbered[[n]], lengths[[n]], (3, 4), 4096, "cpu").item() for n in range(len(ids))]
    expected = [plain_p_yes(llm, soft, places, i, v, (3, 4)) for i, v in zip(ids, vectors)]
    # Gemma 2 scales its embeddings after the module that makes them.
    for found in scores.values():
        if family != "gemma-2":
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(found, alone, atol=1e-5)
    assert np.std(expected) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma-3", "llama-3"])
def test_a_projector_that_gives_the_embedding_of_a_token_is_that_token(family, llms):
    llm, places, soft = with_soft_tokens(llms(family), of=("behaviours", "target"))
    embedding, token = llm.get_input_embeddings(), 7
    with torch.no_grad():
        soft.projectors["item"][2].weight.zero_()
        soft.projectors["item"][2].bias.copy_(embedding(torch.tensor([token]))[0])
    ids = [[5, 6, places.first + 2, 9, places.first + 4, 3], [5, 6, places.first + 2, 1]]
    words = [[token if i >= places.first else i for i in prompt] for prompt in ids]
    lengths = torch.tensor([len(i) for i in ids])
    with soft.numbered(pad(ids)) as numbered:
        found = p_yes(llm, numbered, lengths, (3, 4), 64, "cpu")
    np.testing.assert_allclose(found, p_yes(llm, pad(words), lengths, (3, 4), 64, "cpu"), atol=1e-6)


def test_rows_share_an_id_where_they_share_the_vectors(llms):
    llm, places, soft = with_soft_tokens(llms("llama"))
    ids, vectors = prompts(places)
    vectors[6, 4:] = vectors[5, 4:] = vectors[3, 4:] = torch.tensor([1.0, float("nan"), 2.0])
    with soft.numbered(pad(ids), by_kind(vectors)) as numbered:
        rows = numbered[:, -2]
    # Rows 3 and 6 have one user, row 5 another.
    assert rows[3] == rows[6] != rows[5] and len(rows.unique()) == 8 and (rows >= places.first + ITEMS).all()
    llm, places, soft = with_soft_tokens(llms("llama"), of=("user",))
    ids, vectors = prompts(places)
    with soft.numbered(pad(ids), by_kind(vectors)) as numbered:
        assert len(numbered[:, -2].unique()) == 3 and (numbered[:, -2] == numbered[[0, 1, 2] * 3, -2]).all()


@pytest.mark.parametrize("of", [("user",), ("history",), ("user", "history"), ("behaviours", "user", "history")])
def test_at_first_a_soft_token_is_a_neutral_word_however_many_kinds_it_tells(of, llms):
    _, places, soft = with_soft_tokens(llms("llama"), of=of, init="zero")
    ids, vectors = prompts(places)
    with torch.no_grad(), soft.numbered(pad(ids), by_kind(vectors)) as numbered:
        found = soft_embeddings(soft, numbered[:, -2])
    expected = AutoModelForCausalLM.from_pretrained(llms("llama")).get_input_embeddings()(torch.tensor([2]))
    torch.testing.assert_close(found, expected.expand_as(found))


def test_a_kind_more_changes_nothing_until_it_is_learned(llms):
    """What was pretrained with one kind is taken by a run that has more."""
    _, *one = with_soft_tokens(llms("llama"), of=("history",))
    _, *both = with_soft_tokens(llms("llama"), of=("user", "history"), init="zero")
    both[1].projectors["history"].load_state_dict(one[1].projectors["history"].state_dict())
    found = []
    for places, soft in (one, both):
        ids, vectors = prompts(places)
        with torch.no_grad(), soft.numbered(pad(ids), by_kind(vectors)) as numbered:
            found.append(soft_embeddings(soft, numbered[:, -2]))
    torch.testing.assert_close(*found)


def test_gradients_reach_the_projectors_alone(llms):
    """Those of trees are those of the prompts one by one; the head and the embeddings, tied here, get none."""
    found = []
    for budget in (1, 4096):
        llm, places, soft = with_soft_tokens(llms("llama-3"))
        llm = add_lora(llm.requires_grad_(False), 2, 4, 0.0, ["q_proj", "v_proj"])
        ids, vectors = prompts(places)
        lengths = torch.tensor([len(i) for i in ids])
        with soft.numbered(pad(ids), by_kind(vectors)) as numbered:
            for _, logits in answer_logits(llm, numbered, lengths, budget, [3, 4]):
                torch.softmax(logits, dim=-1)[:, 0].sum().backward()
        assert all(p.grad is None for name, p in llm.named_parameters() if "lora_" not in name)
        found.append({name: p.grad for name, p in soft.named_parameters()})
    assert all(grad.abs().sum() > 0 for grad in found[0].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-5, rtol=1e-4)


def test_numbers_are_encoded_by_the_training_rows():
    rows = numbers(200)
    scaled = EncodedNumbers(HISTORY, rows)(torch.from_numpy(rows)).numpy()
    values, missing, passed = scaled[:, :3], scaled[:, 3:6], scaled[:, 6:].reshape(len(rows), 3, -1)
    np.testing.assert_array_equal(missing, np.isnan(rows))
    assert not values[missing > 0].any()
    logs = np.where([False, True, True], np.log1p(rows), rows)
    expected = (logs - np.nanmean(logs, axis=0)) / np.nanstd(logs, axis=0)
    np.testing.assert_allclose(values[missing == 0], expected[missing == 0], atol=1e-5)
    for column in range(3):
        known = logs[missing[:, column] == 0, column]
        edges = np.quantile(known, np.linspace(0, 1, passed.shape[2] + 1))
        # Between its edges, interpolation of the number of bins passed is the sum over bins.
        bins = np.interp(known, edges, np.arange(len(edges)))
        np.testing.assert_allclose((passed[missing[:, column] == 0, column] + 0.5).sum(1), bins, atol=1e-3)
        assert not passed[missing[:, column] > 0, column].any()
    never = EncodedNumbers(("user_mean",), np.full((3, 1), np.nan, dtype=np.float32))
    assert never(torch.tensor([[float("nan")], [2.0]])).tolist() == [[0.0, 1.0] + [0.0] * 16, [2.0, 0.0] + [0.5] * 16]


def test_saved_and_loaded(tmp_path, llms):
    llm, places, soft = with_soft_tokens(llms("llama"))
    soft.save(tmp_path)
    _, _, other = with_soft_tokens(llms("llama"), init="zero")
    other.load(tmp_path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in soft.state_dict().items())
    with pytest.raises(SoftTokenError, match="expected the soft tokens of this LLM"):
        with_soft_tokens(llms("llama"), of=("behaviours",))[2].load(tmp_path)
    (tmp_path / SOFT_TOKENS).write_bytes(b"cut")
    with pytest.raises(SoftTokenError, match="expected the soft tokens of this LLM .* the file is damaged: copy it again"):
        other.load(tmp_path)
    with pytest.raises(SoftTokenError, match="llm: expected soft tokens in .*, found a damaged file"):
        other.take(tmp_path)


def test_what_belongs_to_a_row_is_not_scored_without_its_vector(llms):
    llm, places, soft = with_soft_tokens(llms("llama"))
    with pytest.raises(SoftTokenError, match="numbered"):
        llm(torch.tensor([[1, places.first + ITEMS, 2]]))
    # Nor by that of another prompt, for which the LLM is at work.
    ids, vectors = prompts(places)
    with soft.numbered(pad(ids), by_kind(vectors)), soft.numbered(pad(ids)), pytest.raises(SoftTokenError, match="numbered"):
        llm(pad(ids))
    with pytest.raises(SoftTokenError, match="embedding of at most 4 tokens"):
        SoftTokens(
            llm, SoftPlaces(first=4, of=("history",)), "zero", {"item": 1, "row": 1}, None, {}, EncodedNumbers(HISTORY, numbers(9))
        )
