"""Checks all modes of the peer against the golden cases, in float64.

    python check_golden.py DIRECTORY

Prints the largest deviation of the losses, gradients, parameters and scores of each case, and exits
with 1 if one exceeds 1e-9.
"""

import json
import pathlib
import sys

import torch
from safetensors import safe_open

from bm3 import Bm3, Settings, normalised_adjacency

TOLERANCE = 1e-9
LETTERS = {"image": ("v", "vt"), "text": ("t", "tv")}


def our_name(name):
    """The engine's name for a golden case's parameter."""
    fixed = {"user_emb": "user_embedding", "item_emb": "item_embedding",
             "pred_w": "predictor.weight", "pred_b": "predictor.bias"}
    if name in fixed:
        return fixed[name]
    if name.startswith("gcn_w"):
        return f"propagation.{name[5:]}.weight"
    modality, kind = name.split("_")
    return f"modality.{modality}." + {"w": "weight", "b": "bias", "feat": "features"}[kind]


def check(path, mode):
    with safe_open(path, "pt") as file:
        case = {name: file.get_tensor(name) for name in file.keys()}
        stated = json.loads(file.metadata()["bm3"])
    settings = Settings(
        layers=stated["n_layers"], dropout=stated["dropout"], reg_weight=stated["reg_weight"],
        cl_weight=stated["cl_weight"], learning_rate=stated["lr"],
        freeze_features=stated["frozen"], self_loops=stated["self_loops"],
        propagation=stated["propagation"])
    names = list(stated["params"])
    modalities = [name for name in ("image", "text") if f"{name}_w" in names]
    names += [f"{name}_feat" for name in modalities if f"{name}_feat" not in names]
    parameters = {our_name(name): case[f"init_{name}"] for name in names}
    train = case["inter"][case["inter"][:, 2] == 0]
    adjacency = normalised_adjacency(
        stated["users"], stated["items"], train[:, 0], train[:, 1], settings.self_loops,
        torch.float64)
    model = Bm3(settings, adjacency, parameters, modalities, mode)
    worst = {"scores": float((model.scores() - case["eval0_scores"]).abs().max())}

    def note(kind, found, expected):
        worst[kind] = max(worst.get(kind, 0.0), float((found.detach() - expected).abs().max()))

    for step in range(stated["steps"]):
        masks = {}
        if settings.dropout > 0:
            for key, letter in [("user", "u"), ("item", "i")] + [(m, LETTERS[m][0]) for m in modalities]:
                masks[key] = case[f"step{step}_mask_{letter}"].to(torch.float64)
        terms, total = model.step(case[f"step{step}_users"], case[f"step{step}_items"], masks)
        note("loss", total, case[f"step{step}_loss_total"])
        for name in ("ui", "iu", "reg"):
            note("loss", terms[name], case[f"step{step}_loss_{name}"])
        for modality in modalities:
            for kind, letters in zip(("align", "mask"), LETTERS[modality]):
                note("loss", terms[f"{kind}.{modality}"], case[f"step{step}_loss_{letters}"])
        for name in stated["params"]:
            value = model.parameters[our_name(name)]
            if step == 0 and value.grad is not None:
                note("gradients", value.grad, case[f"step0_grad_{name}"])
            if step in (0, 2) and f"after{step + 1}_{name}" in case:
                note("parameters", value, case[f"after{step + 1}_{name}"])
    note("scores", model.scores(), case["eval3_scores"])
    return worst


def main():
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    failed = False
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        sys.exit(f"{directory}: no golden case (*.safetensors)")
    for path in paths:
        for mode in ("reference", "optimised", "graph"):
            worst = check(path, mode)
            wrong = any(not deviation <= TOLERANCE for deviation in worst.values())
            failed |= wrong
            shown = "  ".join(f"{kind} {deviation:.1e}" for kind, deviation in sorted(worst.items()))
            print(f"{path.stem:16} {mode:9} {'FAILED' if wrong else 'ok':6} {shown}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
