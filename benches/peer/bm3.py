"""BM3 in PyTorch, against which the engine is measured.

Modes of the same mathematics:

- `reference` does the same work in each step as the published implementation: all items projected,
  the predictor on the whole tables, dropout masks for all rows, gradients by autograd, dense Adam over
  every parameter, including raw features unless they are frozen.
- `optimised` is the best plain PyTorch can do: only the batch's distinct rows are projected and
  predicted, features are frozen, Adam is fused, and the adjacency, which is symmetric, is never
  transposed.
- `graph` is `optimised` for a GPU that would wait for its host: shapes are the same each step (the
  rows of the batch's pairs, including repeats), so the whole step is recorded once as a CUDA graph and
  replayed.
"""

import torch
import torch.nn.functional as F


class Settings:
    """A model's settings, with the engine's names."""

    def __init__(self, layers=1, dropout=0.5, reg_weight=0.1, cl_weight=2.0, learning_rate=1e-3,
                 freeze_features=False, self_loops=False, propagation="light"):
        self.layers = layers
        self.dropout = dropout
        self.reg_weight = reg_weight
        self.cl_weight = cl_weight
        self.learning_rate = learning_rate
        self.freeze_features = freeze_features
        self.self_loops = self_loops
        self.propagation = propagation


def normalised_adjacency(users, items, user_ids, item_ids, self_loops, dtype):
    """The symmetric adjacency of the distinct pairs, scaled by the degrees, as a sparse CSR."""
    nodes = users + items
    pairs = torch.unique(torch.stack([user_ids, item_ids + users]), dim=1)
    rows = torch.cat([pairs[0], pairs[1]])
    columns = torch.cat([pairs[1], pairs[0]])
    if self_loops:
        loops = torch.arange(nodes)
        rows, columns = torch.cat([rows, loops]), torch.cat([columns, loops])
    degrees = torch.bincount(rows, minlength=nodes).to(dtype) + 1e-7
    values = (degrees[rows] * degrees[columns]).rsqrt()
    coordinates = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (nodes, nodes))
    return coordinates.coalesce().to_sparse_csr()


class SymmetricProduct(torch.autograd.Function):
    """A x for a symmetric A; the gradient of x is A times the output's."""

    @staticmethod
    def forward(context, adjacency, rows):
        context.adjacency = adjacency
        return adjacency @ rows

    @staticmethod
    def backward(context, gradient):
        return None, context.adjacency @ gradient


class Bm3:
    """Parameters, step and optimiser.

    `parameters` holds the tensors under the engine's names: user_embedding, item_embedding,
    predictor.weight, predictor.bias, propagation.<layer>.weight, and modality.<name>.weight, .bias
    and .features of every name in `modalities`.
    """

    def __init__(self, settings, adjacency, parameters, modalities, mode):
        self.settings = settings
        self.adjacency = adjacency
        self.modalities = list(modalities)
        self.mode = mode
        self.parameters = {}
        for name, value in parameters.items():
            trained = not (settings.freeze_features and name.endswith(".features"))
            self.parameters[name] = value.clone().requires_grad_(trained)
        trained = [value for value in self.parameters.values() if value.requires_grad]
        fused = mode != "reference"
        capturable = mode == "graph" and adjacency.is_cuda
        self.optimiser = torch.optim.Adam(
            trained, lr=settings.learning_rate, fused=fused or None, capturable=capturable)
        self.recorded = None

    def propagate(self):
        """H of users and of items, including the items' residual."""
        users = self.parameters["user_embedding"]
        items = self.parameters["item_embedding"]
        layer = torch.cat([users, items])
        total = layer
        for index in range(self.settings.layers):
            if self.mode == "reference":
                layer = self.adjacency @ layer
            else:
                layer = SymmetricProduct.apply(self.adjacency, layer)
            if self.settings.propagation == "gcn":
                layer = F.leaky_relu(layer @ self.parameters[f"propagation.{index}.weight"], 0.2)
            total = total + layer
        mean = total / (self.settings.layers + 1)
        return mean[: len(users)], mean[len(users):] + items

    def predict(self, rows):
        return F.linear(rows, self.parameters["predictor.weight"], self.parameters["predictor.bias"])

    def project(self, name, items=None):
        features = self.parameters[f"modality.{name}.features"]
        if items is not None:
            features = features[items]
        prefix = f"modality.{name}"
        return F.linear(features, self.parameters[f"{prefix}.weight"], self.parameters[f"{prefix}.bias"])

    def target(self, rows, mask):
        """The rows after dropout; no gradient flows through them."""
        rows = rows.detach()  # F.dropout with p = 0 returns its argument, gradients included
        if mask is not None:
            return rows * mask / (1 - self.settings.dropout)
        return F.dropout(rows, self.settings.dropout)

    def losses(self, users, items, masks=None):
        """The named loss terms of a batch of pairs, and their weighted sum."""
        reference = self.mode == "reference"
        masks = masks or {}
        user_rows, item_rows = self.propagate()
        terms = {"reg": (user_rows.norm() + item_rows.norm()) / len(item_rows)}

        def similarity(online, target):
            return 1 - F.cosine_similarity(online, target, dim=-1, eps=1e-8).mean()

        if reference:
            # Whole tables; the batch's rows are taken at the end.
            user_of_pair, item_of_pair = users, items
            pick_users = pick_items = slice(None)
        elif self.mode == "graph":
            pick_users, pick_items = users, items
            user_of_pair = item_of_pair = slice(None)
        else:
            pick_users, user_of_pair = users.unique(return_inverse=True)
            pick_items, item_of_pair = items.unique(return_inverse=True)
        user_rows, item_rows = user_rows[pick_users], item_rows[pick_items]

        def mask_of(key, pick):
            return masks[key][pick] if key in masks else None

        user_target = self.target(user_rows, mask_of("user", pick_users))
        item_target = self.target(item_rows, mask_of("item", pick_items))
        user_online, item_online = self.predict(user_rows), self.predict(item_rows)
        terms["ui"] = similarity(user_online[user_of_pair], item_target[item_of_pair])
        terms["iu"] = similarity(item_online[item_of_pair], user_target[user_of_pair])
        for name in self.modalities:
            projected = self.project(name, None if reference else pick_items)
            own_target = self.target(projected, mask_of(name, pick_items))
            online = self.predict(projected)[item_of_pair]
            terms[f"align.{name}"] = similarity(online, item_target[item_of_pair])
            terms[f"mask.{name}"] = similarity(online, own_target[item_of_pair])
        contrast = sum(terms[f"{kind}.{name}"] for name in self.modalities for kind in ("align", "mask"))
        total = terms["ui"] + terms["iu"] + self.settings.cl_weight * contrast
        return terms, total + self.settings.reg_weight * terms["reg"]

    def step(self, users, items, masks=None):
        """One Adam step; returns the named terms and the total."""
        if self.mode == "graph" and users.is_cuda and masks is None:
            return self.replay(users, items)
        return self.plain_step(users, items, masks)

    def replay(self, users, items):
        """Replays the recorded step; a new batch size records it first."""
        if self.recorded is None or len(self.recorded[1]) != len(users):
            self.record(users.clone(), items.clone())
        graph, own_users, own_items, result = self.recorded
        own_users.copy_(users)
        own_items.copy_(items)
        graph.replay()
        return result

    def record(self, users, items):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries allocate memory in the first steps
                self.plain_step(users, items)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            result = self.plain_step(users, items)
        self.recorded = graph, users, items, result

    def plain_step(self, users, items, masks=None):
        self.optimiser.zero_grad(set_to_none=True)
        terms, total = self.losses(users, items, masks)
        total.backward()
        self.optimiser.step()
        return terms, total

    @torch.no_grad()
    def scores(self):
        """The product of every predicted user with every predicted item."""
        user_rows, item_rows = self.propagate()
        return self.predict(user_rows) @ self.predict(item_rows).T
