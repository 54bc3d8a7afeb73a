"""What a run warns of, and what is left of one that diverged."""

from pathlib import Path

import pytest

from mae_curriculum.report.runs import read_runs
from mae_curriculum.report.tables import problems
from mae_curriculum.run.checkpoint import load_state, steps_of
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.training.anomalies import CAPTURE, is_spike
from tests.processes import Process, Ranks
from tests.runs import command, finish, options, picture_folder, pictures, rows, weights

REPLAYING = "[{share: 1.0, size: 224, replay_buffer: {factor: 4, steps: 2}}]"


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a replay buffer that came to an end since a weight became NaN in its step 3."""
    folder = tmp_path_factory.mktemp("diverged")
    changes = pictures(picture_folder(folder / "images", 2, 99)) | {"curriculum__stages": REPLAYING}
    done = finish(Process("tests/spoiled.py", "weight", "3", "pretrain", *options(folder / "run", **changes)))
    assert done.returncode == 2
    assert "not finite in 5 steps in a row" in done.stderr
    assert "there is no checkpoint from before" in done.stderr
    assert done.stderr.count("the loss of rank 0 was not finite") == 5
    assert "warning: step 5 in stage 1 is skipped, 3 so far: " in done.stderr
    return folder / "run"


def test_five_steps_without_a_finite_gradient_are_logged_with_their_images_and_end_a_run(diverged: Path) -> None:
    skipped = rows(diverged, "skipped")
    assert len(skipped) == 5
    assert [row["steps_done"] for row in skipped] == [4, 5, 6, 7, 8]
    assert all(len(row["images_by_rank"]) == 1 and len(row["images_by_rank"][0]) == 64 for row in skipped)
    assert rows(diverged, "error")[0]["reason"].startswith("loss or gradient was not finite")


def test_while_steps_are_skipped_no_checkpoint_replaces_a_good_one(tmp_path: Path) -> None:
    flags = options(tmp_path / "run", tracking__every_steps=1, saving__every_minutes=1e-9)
    done = finish(Process("tests/spoiled.py", "weight", "20", "pretrain", *flags))
    assert done.returncode == 2
    assert "the checkpoint of step 20 is good" in done.stderr
    assert [steps_of(path) for path in RunFolder(tmp_path / "run").checkpoints] == [19, 20]
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())
    assert command("pretrain", *flags).returncode == 0  # whatever spoiled it is gone: it goes on


def test_a_loss_that_is_not_finite_on_one_rank_is_a_step_skipped_by_all(tmp_path: Path) -> None:
    flags = options(tmp_path / "run", epochs=1)
    done = finish(Ranks("tests/spoiled.py", "loss", "7", "pretrain", *flags))
    assert done.returncode == 0
    (warning,) = (line for line in done.stderr.splitlines() if "not finite" in line)
    assert warning.startswith("warning: step 7 in stage 1 is skipped, 1 so far: the loss of rank 1 was not finite")
    (row,) = rows(tmp_path / "run", "skipped")
    assert (row["steps_done"], row["stage"], [*map(len, row["images_by_rank"])]) == (8, 0, [32, 32])
    assert [loss is None for loss in row["losses_by_rank"]] == [False, True]
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())
    assert all(row["loss"] < 9 for row in rows(tmp_path / "run", "step"))


def test_a_run_whose_last_step_is_skipped_ends_without_a_loss(tmp_path: Path) -> None:
    flags = options(tmp_path / "run", epochs=1, tracking__every_steps=1)
    done = finish(Process("tests/spoiled.py", "loss", "21", "pretrain", *flags))
    assert done.returncode == 0
    last = rows(tmp_path / "run", "step")[-1]
    assert (last["steps_done"], last["loss"]) == (22, None)
    assert "loss – after" in done.stdout


def test_a_capture_replays_the_step_with_the_weights_it_had(diverged: Path) -> None:
    state = load_state(diverged / CAPTURE)
    assert state["steps_done"] == rows(diverged, "skipped")[0]["steps_done"] - 1
    done = command("replay", "--run", diverged)
    assert done.returncode == 0
    assert done.stderr.startswith(f"images: {diverged.parent / 'images'}\n")
    named = rows(diverged, "skipped")[0]["images_by_rank"][0]
    output = done.stdout.splitlines()
    assert f"step {state['steps_done']}, with the weights it had" in output[-1]
    assert "64 of 64 images have no finite loss or gradient" in output[-1]
    assert sorted(line.split()[0] for line in output[1:-1]) == sorted(named)


def test_a_run_without_capture_cannot_be_replayed(finished: Path) -> None:
    done = command("replay", "--run", finished)
    assert done.returncode == 2
    assert "capture.pt does not exist" in done.stderr


def test_a_stage_that_waits_for_data_is_logged_with_the_setting_to_change(tmp_path: Path) -> None:
    words = ["pretrain", *options(tmp_path / "run", epochs=1)]
    done = finish(Process("tests/spoiled.py", "pause", "200", *words))
    assert done.returncode == 0
    (warning,) = (line for line in done.stderr.splitlines() if "waits for data" in line)
    assert warning.startswith("warning: stage 1 waits for data ")
    assert "raise data.workers (now 0 per process)" in warning
    (row,) = rows(tmp_path / "run", "waiting")
    assert 0.05 < row["share"] < 1


def test_a_loss_spike_is_logged_with_the_setting_to_change(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["pretrain", *options(run, epochs=1, tracking__every_steps=1)]
    done = finish(Process("tests/spoiled.py", "spike", "11", *words))
    assert done.returncode == 0
    (warning,) = (line for line in done.stderr.splitlines() if "times what it was" in line)
    assert warning.startswith("warning: the loss is ")
    assert "at step 12" in warning
    assert "lower optim.base_lr" in warning
    (row,) = rows(run, "spike")
    losses = [row["loss"] for row in rows(run, "step")]
    assert (row["steps_done"], row["loss"], row["before"]) == (12, losses[11], min(losses[1:11]))
    assert "loss spikes: 1, last at step 12" in problems(read_runs([run])[0])


def test_a_loss_twice_the_least_of_ten_is_a_spike() -> None:
    before = [1.0, 0.5, *[0.9] * 8]
    assert is_spike(1.01, before)
    assert not is_spike(1.0, before)
    assert not is_spike(9.0, before[1:])
    assert not is_spike(9.0, [0.0] * 10)  # of classifiers that are sure
