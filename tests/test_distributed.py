import sys

import pytest
import torch

from mae_curriculum.distributed import Agreement, World, connect, picklable
from tests.processes import run_python
from tests.runs import TORCHRUN

WORLD = World(0, 1, torch.device("cpu"))

TWO_PROCESSES = """
import torch
from mae_curriculum.distributed import Agreement, connect


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail(): raise Unpicklable("this", "that")


with connect() as world:
    rank = world.rank
    assert world.gather(rank) == [0, 1]
    assert world.sum(torch.tensor(float(rank + 1))).item() == 3
    assert world.any(rank == 1) and not world.any(False)
    assert world.on_main(lambda: rank) == 0
    assert world.gather_rows(torch.full((rank + 1, 2), rank)).tolist() == [[0, 0], [1, 1], [1, 1]]
    tensor = torch.tensor([float(rank)])
    world.broadcast_([tensor])
    assert tensor.item() == 0
    agreement = Agreement(world)
    votes = [agreement(step == 1 and rank == 1) for step in range(3)]
    assert votes == [False, False, True], votes  # one step later, on both
    agreement.finish()
    with connect() as inner:  # the group that is there is used, and left as it is
        assert (inner.rank, inner.world_size) == (rank, 2)
    assert world.gather(rank) == [0, 1]
    try:
        world.on_main(fail)
    except Exception as error:
        assert "this and that" in str(error)
    else:
        raise SystemExit("no exception")
print("done")
"""


def test_two_processes_exchange_values_votes_and_failures(tmp_path: object) -> None:
    done = run_python([*TORCHRUN, "--no-python", "--", sys.executable, "-c", TWO_PROCESSES])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2


def test_alone_every_exchange_returns_its_input() -> None:
    assert WORLD.gather(3) == [3]
    assert WORLD.any(True)
    assert WORLD.on_main(lambda: 5) == 5
    assert WORLD.sum(torch.tensor(2.0)) == 2
    assert Agreement(WORLD)(True)


def test_alone_an_exception_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        WORLD.on_main(lambda: 1 // 0)
    assert len(caught.traceback) > 2


def test_a_process_started_alone_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with connect() as world:
        assert (world.rank, world.world_size, world.is_main) == (0, 1, True)


def test_an_exception_that_does_not_pickle_arrives_as_its_text() -> None:
    class LocalError(Exception):
        pass

    assert str(picklable(LocalError("no space"))) == "LocalError: no space"
    assert isinstance(picklable(KeyError("a")), KeyError)
