"""Trees of each method; their content was looked at."""

from math import nan
from pathlib import Path

import pytest
from PIL import Image

from mae_curriculum.commands.config import SearchConfig
from mae_curriculum.curriculum.config import Curriculum
from mae_curriculum.search.methods import Method, follow, greedy, halving, sequential
from mae_curriculum.search.picture import draw_search
from mae_curriculum.search.result import describe_search
from tests.search.scores import each

BASE = Curriculum()


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (SearchConfig(), greedy((96, 160, 224), BASE, stages=4, tolerance=0, epochs=4)),
        (SearchConfig(method="sequential"), sequential((96, 160), BASE, stages=2, epochs=4, finish_epochs=1)),
        (
            SearchConfig(method="halving", curricula=("none", "efficienttrain")),
            halving({"$x_$": BASE, "b" * 99: BASE, "c": BASE}, epochs=4),
        ),
    ],
)
def test_a_tree_is_drawn_for_each_method_with_seeds_that_differ_and_runs_that_diverged(
    config: SearchConfig, method: Method, tmp_path: Path
) -> None:
    table = {"0-224": 0.9, "1-96": nan, "1-160": 0.95}
    candidates, found = follow(method, each(lambda candidate: table.get(candidate.name, 0.5)))
    scores = {each.name: [table.get(each.name, 0.5), 0.4] for each in candidates}
    relative_flops = dict.fromkeys(scores, 0.5)
    facts = describe_search(config, candidates, found, scored_by="knn", scores=scores, relative_flops=relative_flops)
    draw_search(tmp_path / "tree.png", facts)
    with Image.open(tmp_path / "tree.png") as image:
        assert image.format == "PNG"
        assert max(image.size) < 1500
