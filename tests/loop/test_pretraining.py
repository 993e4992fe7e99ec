"""`annotator pretrain`: the encoder adapted to the workspace's own faces, in the background, killed and resumed."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from annotator import encoders, maintenance, taxonomy
from annotator.cli import main
from annotator.errors import InputError, LearnerError
from annotator.ingest.importer import run_import
from annotator.loop.learn import opened
from annotator.loop.pretrain import check
from annotator.loop.pretraining import JOB, PretrainRequest, make_pretraining, settings_of
from annotator.loop.rounds import RoundRequest, build_config
from annotator.settings import Workspace
from annotator.status import workspace_status
from annotator.store import LabelStore
from learner import checkpoint
from learner.pretrain.encoder import FaceEncoder
from learner.pretrain.loop import run_pretraining
from learner.round import StoppedError
from tests.loop.conftest import answer, answer_truth, first_order, make_workspace, tick_until
from tests.loop.encoders import write_encoder

QUICK = {
    "steps": 4,
    "batch": 8,
    "dim": 16,
    "grid": 1,
    "terms": {"weights": {"hog": 1.0}, "target_dim": 16},
    "precision": "32-true",
    "log_every": 1,
    "checkpoint_every": 5,
    "probe_every": 2,
}


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """Write a configuration whose runs take seconds."""
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(QUICK))
    return path


def file_job(store: LabelStore, config: Path, **request: object) -> int:
    wishes = PretrainRequest("random", config=config)
    return store.learning.file_job(JOB, wishes.payload() | request).id


def test_only_the_pool_is_learned_from(tmp_path: Path, faces: Path, quick: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    with LabelStore.open(workspace) as store:
        table = store.images.table()
        rows = answer_truth(store, 10)
        answer(store, rows[0], kind="unusable")
        answer(store, rows[1], "fear", "anger", kind="candidates")
        run = make_pretraining(workspace, store, PretrainRequest("random", config=quick))
    chosen = np.load(run / "rows.npy")
    pool = table.rows[(table.split == 0) & (table.state == 0) & (table.rows == table.group)]
    assert set(chosen) == set(pool) - {rows[0]}
    assert not (run / "labels.npz").exists()  # too few to measure on
    assert json.loads((run / "pool.json").read_text())["cache"] == str(workspace.root / "cache" / "32")
    assert not list(workspace.folder("runs").glob(".*"))


def test_validation_faces_and_their_copies_stay_out(tmp_path: Path, faces: Path, quick: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    splits = ["val"] * 4 + ["pool"] * 8
    for number, image in enumerate(sorted((faces / "images").iterdir())[:12]):
        shutil.copy(image, source / f"{number}.png")
    shutil.copy(source / "0.png", source / "copy.png")
    lines = [f"{number}.png,{split}" for number, split in enumerate(splits)]
    (source / "manifest.csv").write_text("\n".join(["path,split", *lines, "copy.png,pool"]) + "\n")
    workspace = Workspace.create(tmp_path / "ws", taxonomy.FERPLUS, learner={"image_size": 32, "start": "random"})
    with LabelStore.open(workspace) as store:
        run_import(workspace, store, source / "manifest.csv", "manifest", given_as="none")
        table = store.images.table()
        run = make_pretraining(workspace, store, PretrainRequest(config=quick))
    chosen = np.load(run / "rows.npy")
    evaluated = table.rows[(table.split != 0) & (table.state == 0)]
    assert len(evaluated) == 3  # the fourth has a copy in the pool: nothing is measured on it
    assert len(chosen) == 9
    assert (table.split[np.isin(table.rows, chosen)] == 0).all()
    assert not set(table.group[np.isin(table.rows, chosen)]) & set(table.group[np.isin(table.rows, evaluated)])


def test_the_pool_s_encoder_takes_over(tmp_path: Path, faces: Path, quick: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    with opened(workspace) as learner:
        for number, row in enumerate(first_order(learner).order[:12].tolist()):
            answer(learner.store, row, ("happiness", "sadness")[number % 2])
        job = file_job(learner.store, quick)
        states, served = set(), set()

        def done() -> bool:
            states.add(json.loads((workspace.root / "learner.json").read_text())["state"])
            assert learner.shards is not None
            served.add(learner.shards.info.kind)
            return learner.shards.info.kind == "network"

        tick_until(learner, done)
        assert "pretraining" in states
        assert served == {"hog", "network"}
        folder = encoders.of_pool(workspace)
        assert folder is not None
        assert learner.shards is not None
        assert learner.shards.folder == folder
        assert FaceEncoder.load(folder / encoders.WEIGHTS).id == folder.name == learner.shards.info.id
        assert Workspace.open(workspace.root).settings.learner.start == "pool"
        finished = next(j for j in learner.store.learning.jobs() if j.id == job)
        assert (finished.state, finished.message) == ("done", f"encoder {folder.name}")
        assert not list(workspace.folder("runs").iterdir())
        told = encoders.pretraining(workspace)
        assert told["state"] == "done"
        assert [point["step"] for point in told["curve"]] == [2, 4]
        assert told["curve"][-1]["labels"] == 12
        assert workspace_status(workspace, learner.store)["encoder"]["start"] == "pool"


def test_rounds_begin_with_the_pool_s_encoder_where_it_is_wide_enough(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path / "ws", faces, start="pool")
    shipped, narrow, wide = (tmp_path / f"{name}.safetensors" for name in ("shipped", "narrow", "wide"))
    for seed, (path, dim) in enumerate(((shipped, 256), (narrow, 63), (wide, 256))):
        write_encoder(path, seed, dim)
    monkeypatch.setattr(encoders, "SHIPPED_FILE", shipped)

    def begins() -> str | None:
        return build_config(workspace, RoundRequest(), 1).backbone.weights

    assert begins() == "shipped"
    encoders.publish(workspace, narrow, "pretrain-0009")
    assert begins() == "shipped"
    folder = encoders.publish(workspace, wide, "pretrain-0010")
    assert encoders.of_pool(workspace) == folder
    assert begins() == str(folder / encoders.WEIGHTS)
    assert encoders.origin(begins()) == folder.name
    encoders.drop(workspace, set())
    assert [p.name for p in encoders.folders(workspace)] == [folder.name]  # the newest of the pool stays
    assert settings_of(workspace, PretrainRequest())["backbone"]["weights"] == str(folder / encoders.WEIGHTS)


def test_kill_dash_nine_in_the_middle_and_the_same_encoder_comes_out(tmp_path: Path, faces: Path, quick: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    with opened(workspace) as learner:
        file_job(learner.store, quick, steps=20)
        tick_until(learner, lambda: learner.runner.pretraining)
        assert learner.runner._child is not None
        assert learner.runner._run is not None
        run = learner.runner._run
        while not (run / "checkpoint" / "state.safetensors").exists():
            assert learner.runner._child.poll() is None
            time.sleep(0.005)
        os.kill(learner.runner._child.pid, signal.SIGKILL)  # the trainer: it is started again
        tick_until(learner, lambda: learner.runner._deaths == 1)
        assert not (run / "out").exists()
        # the learner with its child, as kill -9 takes them: no chance to save, and the job stays leased
        assert learner.runner._child is not None
        learner.runner._child.kill()
        learner.runner._child.wait()
        learner.runner._child = None
    apart = tmp_path / "apart"  # the same run, never disturbed
    apart.mkdir()
    for name in ("config.json", "pool.json", "rows.npy"):
        (apart / name).write_bytes((run / name).read_bytes())
    undisturbed = FaceEncoder.load(run_pretraining(apart) / encoders.WEIGHTS)
    with opened(workspace) as learner:
        assert learner.runner.pretraining
        tick_until(learner, lambda: not learner.runner.busy)
        assert learner.store.learning.jobs()[0].state == "done"
        folder = encoders.of_pool(workspace)
        assert folder is not None
        assert folder.name == undisturbed.id


def test_a_stopped_learner_goes_on_at_the_next_start(tmp_path: Path, faces: Path, quick: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    with opened(workspace) as learner:
        file_job(learner.store, quick, steps=400)
        tick_until(learner, lambda: learner.runner.progress().get("step", 0) >= 2)
        told = encoders.pretraining(workspace)
        assert (told["state"], told["measured"]) == ("running", False)
    assert list(workspace.folder("runs").glob("pretrain-*/checkpoint/state.safetensors"))
    with opened(workspace) as learner:
        assert learner.runner.pretraining
        learner.store.learning.file_job("retrain", {"method": "supervised"})
        answer_truth(learner.store, 8)
        for _ in range(5):
            learner.tick()
        assert learner.runner.pretraining  # a round waits its turn


def test_an_erased_face_leaves_a_run_under_way_and_the_run_goes_on(tmp_path: Path, faces: Path, quick: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    with LabelStore.open(workspace) as store:
        table = store.images.table()
        rows = table.rows[(table.split == 0) & (table.rows == table.group)][:12].tolist()
        for number, row in enumerate(rows):
            answer(store, row, ("happiness", "sadness")[number % 2])
        run = make_pretraining(workspace, store, PretrainRequest("random", config=quick))
        victim = store.images.by_rows([rows[3]])[0]
    (run / ".targets.npy.99").write_bytes(b"half")
    with pytest.raises(StoppedError):
        run_pretraining(run, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before, described = np.load(run / "targets.npy"), np.load(run / "targets-rows.npy")
    report = maintenance.erase(workspace, image_id=victim.image_id, reason="asked for")
    assert f"runs/{run.name}/targets.npy" in report.rewritten
    after = np.load(run / "targets.npy")
    assert before[described == victim.row].any()
    assert not after[described == victim.row].any()
    np.testing.assert_array_equal(after[described != victim.row], before[described != victim.row])
    assert victim.row not in np.load(run / "rows.npy")
    with np.load(run / "labels.npz") as labels:
        assert set(labels["rows"]) == set(rows) - {victim.row}
        assert (labels["label"] == [1, 3, 1, 1, 3, 1, 3, 1, 3, 1, 3]).all()
    assert not list(run.glob(".*"))
    step = checkpoint.load(run / "checkpoint" / "state.safetensors")[1]["step"]
    assert 0 < step < QUICK["steps"]
    out = run_pretraining(run)  # from there, not from the beginning
    assert FaceEncoder.load(out / encoders.WEIGHTS).dim == 16
    assert encoders.read_curve(run / encoders.CURVE)[-1]["labels"] == 11
    assert maintenance.verify(workspace).problems == []


def test_a_run_of_which_hardly_anybody_is_left_goes(tmp_path: Path, faces: Path, quick: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    with LabelStore.open(workspace) as store:
        run = make_pretraining(workspace, store, PretrainRequest("random", config=quick))
        image = store.images.by_rows([0])[0].image_id
    np.save(run / "rows.npy", np.array([0, 5]))
    report = maintenance.erase(workspace, image_id=image, reason="asked for")
    assert f"runs/{run.name}" in report.rewritten
    assert not run.exists()


def test_backup_and_verify_know_the_pool_s_encoder(tmp_path: Path, faces: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces, start="pool")
    made = tmp_path / "made.safetensors"
    write_encoder(made, 5)
    folder = encoders.publish(workspace, made, "pretrain-0001")
    archive = maintenance.backup(workspace, tmp_path / "backup.tar")
    restored = maintenance.restore(archive, tmp_path / "restored")
    found = encoders.of_pool(restored)
    assert found is not None
    assert encoders.EncoderFile.read(found / encoders.WEIGHTS).id == folder.name
    assert maintenance.verify(restored).ok
    data = bytearray((found / encoders.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (found / encoders.WEIGHTS).write_bytes(bytes(data))
    assert "holds the weights of" in maintenance.verify(restored).problems[0]


def test_wrong_wishes_are_told_before_anything_starts(tmp_path: Path, faces: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    wrong = tmp_path / "wrong.yaml"
    for text, words in (("stepps: 3\n", "stepps"), ("image_size: 64\n", "32 pixels only"), ("- 1\n", "no mapping")):
        wrong.write_text(text)
        with pytest.raises(InputError, match=words):
            check(workspace, PretrainRequest("random", config=wrong))
    with pytest.raises(InputError, match=r"no encoder .*gone"):
        check(workspace, PretrainRequest(str(tmp_path / "gone.safetensors")))
    empty = Workspace.create(tmp_path / "empty", workspace.settings.taxonomy)
    with LabelStore.open(empty) as store, pytest.raises(LearnerError, match="import some"):
        make_pretraining(empty, store, PretrainRequest("random"))
    assert not list(empty.folder("runs").iterdir())


def test_the_command_works_without_a_learner(
    tmp_path: Path, faces: Path, quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make_workspace(tmp_path / "ws", faces)
    given = ["pretrain", str(workspace.root), "--start", "random", "--config", str(quick), "--steps", "2", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    folder = workspace.root / "encoders" / told["encoder"]
    assert encoders.is_complete(folder)  # every face is read when the command ends
    assert told["curve"] == []
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(workspace.root), "--start", "hog"])
    assert ended.value.code == 2
    assert "'hog' is no start" in capsys.readouterr().err
