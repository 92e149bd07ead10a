"""One engine: what the program trains and recommends, Python does to the bit."""

import csv
import io
import json

import numpy as np
import pytest

from bm3_engine import BM3, from_mmrec, original_ids

FLAGS = ["--epochs", 6, "--embedding-size", 16, "--batch-size", 256, "--layers", 2, "--device", "cpu"]
PARAMETERS = dict(epochs=6, embedding_size=16, batch_size=256, layers=2, device="cpu")


def assert_same_lists(program, path, model: BM3, *flags) -> None:
    """The program's lists, items and scores, of all users are the model's."""
    printed = program("recommend", "--model", path, "--top-k", 9, "--scores", *flags)
    rows = list(csv.DictReader(io.StringIO(printed)))
    ids, scores = model.recommend(np.arange(model.n_users_), k=9)
    found = ids >= 0
    users, ranks = np.nonzero(found)
    assert [int(row["user"]) for row in rows] == users.tolist()
    assert [int(row["rank"]) - 1 for row in rows] == ranks.tolist()
    assert [int(row["item"]) for row in rows] == ids[found].tolist()
    assert [np.float32(row["score"]) for row in rows] == scores[found].tolist()


@pytest.mark.parametrize("frozen", [False, True])
def test_lists_of_a_run_that_the_program_trained(program, folder, tmp_path, frozen):
    run = tmp_path / "run"
    flags = ["--freeze-features"] if frozen else []
    program("train", "--data", folder, "--out", run, *FLAGS, *flags)
    model = BM3.load(run, device="cpu")
    assert_same_lists(program, run, model)

    # Python trains the same model from the same folder, byte for byte, and the program takes it.
    dataset = from_mmrec(folder)
    trained = BM3(**PARAMETERS, freeze_features=frozen).fit(dataset, directory=tmp_path / "python")
    name = "model.safetensors"
    assert (tmp_path / "python" / name).read_bytes() == (run / name).read_bytes()
    assert_same_lists(program, tmp_path / "python", trained)
    # Its settings name the folder, as the program's do.
    assert (tmp_path / "python" / "config.toml").read_text() == (run / "config.toml").read_text()
    measured = json.loads(program("evaluate", "--json", "--device", "cpu", "--model", tmp_path / "python"))
    assert measured["metrics"]["recall@20"] == trained.history_[trained.best_epoch_ - 1]["test"]["recall@20"]
    trained.save(tmp_path / "saved.safetensors")
    assert (tmp_path / "saved.safetensors").read_bytes() == (run / name).read_bytes()
    best = trained.history_[trained.best_epoch_ - 1]
    assert trained.evaluate(*dataset.test) == best["test"]
    trained.score_cold_items(dataset)
    assert_same_lists(program, run, trained, "--cold-items")


def test_a_run_goes_on_with_features_kept_as_they_were(program, folder, tmp_path):
    settings = {**PARAMETERS, "epochs": 2, "freeze_features": True, "feature_storage": "stream"}
    run = tmp_path / "run"
    BM3(**{**settings, "epochs": 1}).fit(from_mmrec(folder), directory=run)
    program("evaluate", "--device", "cpu", "--model", run)
    BM3(**settings).fit(from_mmrec(folder), directory=run, resume=True)
    assert 'feature_storage = "stream"' in (run / "config.toml").read_text()


def test_original_ids_are_kept_with_a_run(program, tmp_path):
    rows = [(f"user {user}", f"item {item}") for user in range(9) for item in range(8) if (user + item) % 3]
    table = tmp_path / "table.csv"
    table.write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in rows))
    folder, run = tmp_path / "data", tmp_path / "run"
    program("prepare", "--interactions", table, "--k-core", 0, "--out", folder)
    kept = original_ids(folder)
    assert kept is not None and kept[0][0] == "user 0"
    assert [len(ids) for ids in kept] == [9, 8]
    BM3(**{**PARAMETERS, "epochs": 1}).fit(from_mmrec(folder), directory=run)
    assert original_ids(run) == original_ids(run / "model.safetensors") == kept
    with pytest.raises(FileNotFoundError):
        original_ids(tmp_path / "nowhere")
    assert original_ids(tmp_path) is None
    (folder / "i_id_mapping.csv").write_text("id\titemID\nx\t7\n")
    with pytest.raises(ValueError, match="line 2"):
        original_ids(folder)


def test_folders_are_read_as_the_program_reads_them(folder, tmp_path, caplog):
    dataset = from_mmrec(folder)
    table = np.loadtxt(folder / "tiny.inter", skiprows=1, usecols=(0, 1, 4), dtype=int)
    for pairs, label in [(dataset.train, 0), (dataset.valid, 1), (dataset.test, 2)]:
        expected = table[table[:, 2] == label, :2]
        assert sorted(zip(*(ids.tolist() for ids in pairs))) == sorted(map(tuple, expected.tolist()))
    assert (dataset.users, dataset.items) == (table[:, 0].max() + 1, table[:, 1].max() + 1)
    names = {path.name.removesuffix("_feat.npy") for path in folder.glob("*_feat.npy")}
    assert set(dataset.modalities) == names
    assert "tiny" in repr(dataset)
    one, *_ = sorted(names)
    assert set(from_mmrec(folder, modalities=[one]).modalities) == {one}
    assert from_mmrec(folder, modalities=[]).modalities == {}
    np.save(tmp_path / "a.npy", np.ones((dataset.items, 3), np.float32))
    elsewhere = from_mmrec(folder, modalities=["smell"], features={"smell": tmp_path / "a.npy"})
    assert elsewhere.modalities == {"smell": 3}
    split = from_mmrec(folder, split=(0.5, 0.25, 0.25))
    assert len(split.train[0]) < len(dataset.train[0])
    with pytest.raises(ValueError, match="split: "):
        from_mmrec(folder, split=(0.5, 0.5))
    with pytest.raises(TypeError, match="features: given beside a Dataset"):
        BM3().fit(dataset, features={})
    with pytest.raises(TypeError, match="validation_fraction: given beside a Dataset"):
        BM3().fit(dataset, validation_fraction=0.3)
    caplog.clear()
    BM3(**{**PARAMETERS, "epochs": 1}).fit(from_mmrec(folder, split=(1, 0, 0)))
    assert any("no validation split" in record.message for record in caplog.records)
    model = BM3(**{**PARAMETERS, "epochs": 1}).fit(dataset)
    assert model.modalities_ == dataset.modalities
