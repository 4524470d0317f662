r"""
SIM
################################################
Reference:
    Qi Pi et al. "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for Click-Through Rate Prediction." in
    CIKM 2020.
    Jianxin Chang et al. "TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR Prediction at Kuaishou." in
    KDD 2023 (sim_search: attention).
    Guorui Zhou et al. "Deep Interest Network for Click-Through Rate Prediction." in KDD 2018 (its attention).

The strongest rival of ReLLa in its paper, which runs it as DIN over the behaviours that SUBR retrieves, each with its rating
(sim_search: semantic). It reads what a prompt tells but for the words: the items of the past, how they were rated, and when.
"""

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import ContextRecommender
from recbole.model.layers import MLPLayers
from torch import nn
from torch.nn.init import xavier_normal_, zeros_

from recbole_rella.data.behaviours import GAPS, BehaviourTransform, with_behaviours
from recbole_rella.rows.fields import BEHAVIOUR_COLUMNS
from recbole_rella.run_folder import identities_of

_SEARCHED_AT_A_TIME = 64  # rows whose past attention searches at a time: so few vectors stay in a processor's cache


class ActivationUnit(nn.Module):
    """DIN's attention, as the authors of ReLLa have it: weights that sum to anything, so that many behaviours weigh more than few.

    Args:
        size (int): E, of targets and behaviours.
        hidden_size (int): of its hidden layer.
    """

    def __init__(self, size, hidden_size):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, target, behaviours, there):
        """The weighted sum of behaviours, float32 [n, E].

        Args:
            target (torch.Tensor): float32 [n, E]; behaviours: float32 [n, L, E]; there: bool [n, L].
        """
        # The first layer on [t; b; t - b; t * b], without making that of every behaviour: a part of t, and a matrix of t times b.
        of_target, of_behaviour, of_difference, of_product = self.layers[0].weight.chunk(4, dim=1)
        matrix = (of_behaviour - of_difference).T + target.unsqueeze(-1) * of_product.T
        hidden = behaviours @ matrix + F.linear(target, of_target + of_difference, self.layers[0].bias).unsqueeze(1)
        weights = self.layers[1:](hidden).squeeze(-1)
        return ((weights * there).unsqueeze(1) @ behaviours).squeeze(1)


def inner_products(query, key, target, behaviours):
    """query(target) . key(behaviour), float32 [n, L]; the key's matrix is applied to the target, not to every behaviour.

    Args:
        query, key (torch.nn.Linear): E -> E, without bias; the others as of `ActivationUnit.forward`.
    """
    return (behaviours @ (query(target) @ key.weight).unsqueeze(-1)).squeeze(-1)


class TargetAttention(nn.Module):
    """Scaled dot-product attention of the target to behaviours, of one head. TWIN searches by its scores, too.

    Args:
        size (int): E, of targets and behaviours.
    """

    def __init__(self, size):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(size, size, bias=False) for _ in range(4))

    def scores(self, target, behaviours):
        """The scores of behaviours, float32 [n, L]; those that are not there have some, too."""
        return inner_products(self.query, self.key, target, behaviours) / behaviours.shape[-1] ** 0.5

    def forward(self, target, behaviours, there):
        """The attended behaviours, float32 [n, E], zeros where there are none; arguments as of `ActivationUnit.forward`."""
        scores = self.scores(target, behaviours)
        # The lowest number and not -inf, of which a history without behaviours would make nan; it is no behaviour's all the same.
        weights = scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(dim=-1) * there
        return self.output(self.value((weights.unsqueeze(1) @ behaviours).squeeze(1)))


class SearchUnit(nn.Module):
    """SIM's soft search: inner products of learned projections, which a loss of their own teaches.

    Args:
        size (int): E, of targets and behaviours.
        fields_size (int): of all feature embeddings of a row.
        mlp_hidden_size (list of int), dropout_prob (float): of the layers that score a row by the behaviours that weigh most.
    """

    def __init__(self, size, fields_size, mlp_hidden_size, dropout_prob):
        super().__init__()
        self.query, self.key = (nn.Linear(size, size, bias=False) for _ in range(2))
        self.layers = MLPLayers([fields_size + 2 * size, *mlp_hidden_size], dropout_prob)
        self.output = nn.Linear(mlp_hidden_size[-1], 1)

    def forward(self, target, behaviours):
        """The scores of behaviours, float32 [n, L]; those that are not there have some, too."""
        return inner_products(self.query, self.key, target, behaviours)

    def logits(self, fields, target, behaviours, there):
        """The score of each row by the whole past, float32 [n]: what the search learns from.

        Args:
            fields (torch.Tensor): float32 [n, fields_size]; the others as of `ActivationUnit.forward`.
        """
        pooled = ((self(target, behaviours) * there).unsqueeze(1) @ behaviours).squeeze(1)
        return self.output(self.layers(torch.cat([fields, target, pooled], dim=-1))).squeeze(-1)


def highest(scores, there, count):
    """Places of the `count` highest scores, int64 [n, count]; what is not there comes last (scores and there: [n, L])."""
    return scores.masked_fill(~there, -torch.inf).topk(count, dim=1).indices


def taken(behaviours, places):
    """The behaviours at places: float32 [n, L, E] by int64 [n, K] -> float32 [n, K, E]."""
    return behaviours.gather(1, places.unsqueeze(-1).expand(-1, -1, behaviours.shape[-1]))


class SIM(ContextRecommender):
    """A network that attends to recent and to searched behaviours of a row, beside its features.

    A behaviour is relu(W [item; answer; gap] + c), where item is the embedding of the item's id plus, with category_field, the mean
    of its categories' embeddings; the target is such an item. The searched branch is chosen by data/sim_dataset.py (semantic,
    category), or here, among the latest sim_max_history (soft, attention). Both branches and the row's features go into an MLP.

    Args:
        config (recbole.config.Config): with the keys of properties/model/SIM.yaml.
        dataset (SIMDataset): a part of a built data set, which finds behaviours.
    """

    properties_files = ("ReLLa.yaml", "SIM.yaml")
    transform = BehaviourTransform

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.ITEM_ID = config["ITEM_ID_FIELD"]
        self.behaviours, self.identities = dataset.behaviours, identities_of(dataset.behaviours)
        size, hidden, dropout = self.embedding_size, config["mlp_hidden_size"], config["dropout_prob"]
        self.search, self.count, self.loss_weight = config["sim_search"], config["sim_size"], config["sim_loss_weight"]
        self._n_items, self._category = dataset.item_num, dataset.category_column()
        if self._category is not None:
            self.register_buffer("_categories", dataset.categories(), persistent=False)
        self.of_item = nn.Linear(size, size)
        answers = len(dataset.behaviours.scale.values) if config["sim_read_ratings"] else 0
        self.answers = nn.Embedding(answers + 1, size) if answers else None
        self.gaps = nn.Embedding(GAPS, size) if config["sim_time_gaps"] else None
        self.of_answer = nn.Linear(size, size, bias=False) if self.answers is not None else None
        self.of_gap = nn.Linear(size, size, bias=False) if self.gaps is not None else None
        fields_size = size * self.num_feature_field
        branches = [count > 0 for count in (config["sim_recent_size"], self.count)]
        if self.search in ("semantic", "category"):
            self.branches = nn.ModuleList(ActivationUnit(size, hidden[-1]) if there else None for there in branches)
        else:
            self.branches = nn.ModuleList(TargetAttention(size) if there else None for there in branches)
        soft = self.search == "soft" and branches[1]
        self.search_unit = SearchUnit(size, fields_size, hidden, dropout) if soft else None
        self.mlp_layers = MLPLayers([fields_size + size * sum(branches), *hidden], dropout)
        self.predict_layer = nn.Linear(hidden[-1], 1)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module):
        """As RecBole's context-aware models begin."""
        if isinstance(module, (nn.Embedding, nn.Linear)):
            xavier_normal_(module.weight)
            if getattr(module, "bias", None) is not None:
                zeros_(module.bias)

    def _token_table(self, field):
        """The embeddings of a token field, float32 [values, E]: a part of RecBole's one table of all such fields."""
        place = self.token_field_names.index(field)
        first = int(self.token_field_offsets[place])
        return self.token_embedding_table.embedding.weight[first : first + self.token_field_dims[place]]

    def _item_table(self):
        """Items as they are attended to and attend, float32 [items, E]; made of all items at once, which is cheaper than of each
        behaviour of a batch."""
        items = self._token_table(self.ITEM_ID)
        if self._category is None:
            return items
        if self._category in self.token_field_names:
            table = self._token_table(self._category)
        else:
            table = self.token_seq_embedding_table[self.token_seq_field_names.index(self._category)].weight
        there = (self._categories > 0).unsqueeze(-1)
        categories = (F.embedding(self._categories, table) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        return items + categories

    def _read(self, interaction):
        """What a row's network reads.

        Returns:
            tuple: fields, float32 [n, fields x E]; target, float32 [n, E]; list of a pair for each branch, or None: behaviours,
            float32 [n, L, E], and whether they are there, bool [n, L].
        """
        interaction = with_behaviours(self.behaviours, interaction, self.ITEM_ID)
        fields = self.concat_embed_input_fields(interaction).flatten(1)
        table = self._item_table()
        target = F.embedding(interaction[self.ITEM_ID], table)
        # relu(W [item; answer; gap] + c), with W cut into three: each is applied to its embeddings, not to every behaviour.
        of_item = self.of_item(table)
        of_answer = None if self.answers is None else self.of_answer(self.answers.weight)
        of_gap = None if self.gaps is None else self.of_gap(self.gaps.weight)

        def behaviours(columns):
            vectors = F.embedding(columns[0], of_item)
            for column, part in zip(columns[1:], (of_answer, of_gap)):
                if part is not None:
                    vectors += F.embedding(column, part)
            return vectors.relu_()

        branches = []
        for place, (unit, names) in enumerate(zip(self.branches, BEHAVIOUR_COLUMNS)):
            if unit is None:
                branches.append(None)
                continue
            columns = [interaction[name] for name in names]
            if place == 1 and self.search == "attention" and self.count < columns[0].shape[1]:
                with torch.no_grad():  # which are chosen has no gradient, so that those of the chosen alone are computed
                    slices = zip(target.split(_SEARCHED_AT_A_TIME), *(column.split(_SEARCHED_AT_A_TIME) for column in columns))
                    scores = torch.cat([unit.scores(rows, behaviours(part)) for rows, *part in slices])
                places = highest(scores, columns[0] > 0, self.count)
                columns = [column.gather(1, places) for column in columns]
            branches.append((behaviours(columns), columns[0] > 0))
        return fields, target, branches

    def _hidden(self, fields, target, branches):
        """The output of the last hidden layer, float32 [n, mlp_hidden_size[-1]]."""
        attended = []
        for place, (unit, branch) in enumerate(zip(self.branches, branches)):
            if branch is None:
                continue
            behaviours, there = branch
            if place == 1 and self.search_unit is not None and self.count < behaviours.shape[1]:
                with torch.no_grad():  # which are chosen has no gradient
                    places = highest(self.search_unit(target, behaviours), there, self.count)
                behaviours, there = taken(behaviours, places), there.gather(1, places)
            attended.append(unit(target, behaviours, there))
        return self.mlp_layers(torch.cat([fields, *attended], dim=-1))

    def forward(self, interaction):
        """The logits of rows.

        Args:
            interaction (Interaction): n rows with row_id, item and features; behaviours are found where it has none.

        Returns:
            torch.Tensor: float32 [n].
        """
        return self.predict_layer(self._hidden(*self._read(interaction))).squeeze(-1)

    def calculate_loss(self, interaction):
        """Binary cross-entropy of the labels; with soft search plus that of the search unit, by sim_loss_weight.

        Args:
            interaction (Interaction): n rows with labels.

        Returns:
            torch.Tensor: float32 [], the mean over the rows.
        """
        fields, target, branches = self._read(interaction)
        labels = interaction[self.LABEL].float()
        logits = self.predict_layer(self._hidden(fields, target, branches)).squeeze(-1)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        if self.search_unit is not None and self.loss_weight > 0:
            searched = self.search_unit.logits(fields, target, *branches[1])
            loss = loss + self.loss_weight * F.binary_cross_entropy_with_logits(searched, labels)
        return loss

    def predict(self, interaction):
        """The probability that each row is liked, float32 [n]; items other than the rows' own are searched for here."""
        return self.forward(interaction).sigmoid()

    @torch.no_grad()
    def item_vectors(self):
        """The embeddings of item ids, float32 [items, E], by RecBole's internal ids."""
        return self._token_table(self.ITEM_ID).detach().clone()

    @torch.no_grad()
    def row_vectors(self, interaction):
        """The representations of rows: the output of the MLP's last hidden layer, without dropout.

        Args:
            interaction (Interaction): n rows, as for `predict`.

        Returns:
            torch.Tensor: float32 [n, mlp_hidden_size[-1]].
        """
        training = self.training
        self.eval()
        try:
            return self._hidden(*self._read(interaction))
        finally:
            self.train(training)
