"""Trains on made-up data, recommends, adds a new item, saves and loads."""

import tempfile
from pathlib import Path

import numpy as np

from bm3_engine import BM3

# 500 users and 400 items of ten tastes; users interact with items of their taste, and an item's image
# and text embeddings show its taste, with noise.
random = np.random.default_rng(0)
user_taste, item_taste = random.integers(0, 10, 500), random.integers(0, 10, 400)
users, items = random.integers(0, 500, 40_000), random.integers(0, 400, 40_000)
liked = user_taste[users] == item_taste[items]
users, items = users[liked], items[liked]


def embed(taste: np.ndarray, width: int) -> np.ndarray:
    centres = np.random.default_rng(width).normal(size=(10, width))
    return (centres[taste] + random.normal(size=(len(taste), width))).astype(np.float32)


features = {"image": embed(item_taste, 64), "text": embed(item_taste, 32)}

model = BM3(embedding_size=32, batch_size=256, learning_rate=0.005, epochs=50)
model.fit(users, items, features)
print("best epoch:", model.best_epoch_)

ids, scores = model.recommend([0, 1, 2], k=5)
print("tastes of three users:", user_taste[:3], "and of their lists:", item_taste[ids].tolist())
ids, cosines = model.similar_items(7, k=5)
print("item 7 of taste", item_taste[7], "is like items", ids, "of tastes", item_taste[ids])

new = model.add_items({"image": embed(np.array([3]), 64), "text": embed(np.array([3]), 32)})
print("a new item of taste 3 is like items of tastes", item_taste[model.similar_items(new[0], 5)[0]])

path = Path(tempfile.mkdtemp()) / "model.safetensors"
model.save(path)
print("saved, and loaded:", BM3.load(path).recommend(0, k=5, return_scores=False))
