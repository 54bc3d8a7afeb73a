from collections.abc import Sequence
from math import nan
from pathlib import Path

from mae_curriculum.commands.config import SearchConfig
from mae_curriculum.config import load_file
from mae_curriculum.curriculum.config import Augmentation, Curriculum
from mae_curriculum.search.methods import follow, greedy, sequential
from mae_curriculum.search.result import curriculum_file, describe_search, format_search
from tests.search.scores import each

BASE = Curriculum(augmentation=Augmentation(flip=False))


def greedy_facts(scores: dict[str, Sequence[float]], seeds: tuple[int, ...]) -> tuple[dict[str, object], Curriculum]:
    method = greedy((96, 224), BASE, stages=3, tolerance=0.01, epochs=4)
    candidates, found = follow(method, each(lambda candidate: sum(scores[candidate.name]) / len(seeds)))
    config = SearchConfig(seeds=len(seeds), tolerance=0.01)
    relative_flops = {"0-224": 1.0, "1-96": 0.75, "2-96": 0.5}
    return describe_search(
        config, candidates, found, scored_by="knn", scores=scores, relative_flops=relative_flops
    ), found.curriculum


def test_the_table_has_the_scores_their_noise_and_what_was_found() -> None:
    facts, _ = greedy_facts({"0-224": [0.9, 0.8], "1-96": [0.92, 0.8], "2-96": [0.7, nan]}, (0, 1))
    assert format_search(facts).splitlines() == [
        "greedy search by kNN accuracy, tolerance 0.01; mean over the seeds [0, 1]",
        "round  candidate               stages  epochs  compute  kNN accuracy  chosen",
        "    0        224             100% 224       4     1.00   85.0 ± 7.1%     yes",
        "    1         96  33.3% 96, 66.7% 224       4     0.75   86.0 ± 8.5%     yes",
        "    2         96  66.7% 96, 33.3% 224       4     0.50             –        ",
        # 0.1 and 0.12 apart: 7.07 and 8.49; differences 0.02 and 0: 1.41
        "standard deviation over the seeds (medians): 7.8 points of a score, 1.4 of its difference from the baseline",
        "found: 33.3% 96, 66.7% 224, paced by images",
    ]


def test_a_row_of_sequential_has_what_the_candidate_trains_itself() -> None:
    candidates, found = follow(sequential((96, 224), BASE, stages=2, epochs=6, finish_epochs=1), each(lambda _: 0.5))
    names = [each.name for each in candidates]
    facts = describe_search(
        SearchConfig(method="sequential"),
        candidates,
        found,
        scored_by="knn",
        scores={name: [0.5] for name in names},
        relative_flops=dict.fromkeys(names, 1.0),
    )
    assert [line.split("  ")[0] for line in format_search(facts).splitlines()[-1:]] == [
        "found: 42.9% 96, 42.9% 96, 14.3% 224, paced by compute"
    ]
    assert format_search(facts).splitlines()[3:5] == [
        "    1        224  75% 224, 25% 224       4     1.00         50.0%        ",
        "    2         96   75% 96, 25% 224       4     1.00         50.0%     yes",
    ]


def test_with_one_seed_the_noise_is_not_known() -> None:
    facts, _ = greedy_facts({"0-224": [0.9], "1-96": [0.8]}, (0,))
    assert "one seed: how much of a difference is chance is not known" in format_search(facts)


def test_the_curriculum_file_is_one_and_says_where_it_comes_from(tmp_path: Path) -> None:
    facts, curriculum = greedy_facts({"0-224": [0.9], "1-96": [0.9], "2-96": [0.1]}, (0,))
    text = curriculum_file(SearchConfig(run=Path("runs/mine")), facts, curriculum)
    (tmp_path / "found.yaml").write_text(text)
    assert load_file(Curriculum, tmp_path / "found.yaml") == curriculum
    assert text.startswith("# found by python -m mae_curriculum search --config runs/mine/config.yaml\n")
    assert "# greedy search by kNN accuracy, tolerance 0.01; mean over the seeds [0]\n" in text
