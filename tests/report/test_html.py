import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_curriculum.__main__ import main
from mae_curriculum.report.comparison import comparison_table
from mae_curriculum.report.curves import means, newest_mean, thin
from mae_curriculum.report.runs import read_runs
from mae_curriculum.report.tables import results_of, seconds_by_activity, stage_table
from mae_curriculum.terminal import UNKNOWN
from tests.chromium import Page
from tests.runs import command, options, stop_midway

START = 1_700_000_000.0


def write_run(folder: Path, *, steps: int = 60, **facts: Any) -> Path:
    """Write the journal of a run that is killed after a third of its steps, restarted, and stopped by SIGTERM.

    facts  additional fields of each step's row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    third, start = steps // 3, {"event": "start", "total_steps": steps, "stages": 2, "world_size": 2, "device": "cpu"}
    events: list[dict[str, Any]] = []
    for step in range(steps):
        time = START + step + 100 * (step >= third)
        if step in (0, third):
            events.append({**start, "time": time - 0.5, "steps_done": max(0, step - 5)})
        if step in (0, steps // 2):
            place = {"steps_done": step, "stage": 2 * step // steps, "size": [24, 24]}
            events.append({"event": "stage", "time": time, **place})
        row = {"steps_done": step + 1, "loss": 1 / (step + 1), "images": 64 * (step + 1), "train_seconds": step / 2}
        row |= {"progress": (step + 1) / steps, **facts}
        events.append({"event": "step", "time": time, **row})
        if step == third - 6:
            events.append({"event": "save", "time": time, "steps_done": step + 1})
    events.append({"event": "stop", "time": time, "steps_done": steps, "reason": "SIGTERM"})
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def report(*arguments: object) -> str:
    """Write a report; returns the page."""
    words = [str(word) for word in arguments]
    out = Path(words[words.index("--out") + 1]) if "--out" in words else Path(words[0]) / "report.html"
    assert main(["report", *words]) == 0
    return out.read_text()


def text_of(page: str) -> str:
    """Return a page's text, without its scripts and tags."""
    bare = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", bare).split())


def test_thinning_keeps_single_spikes_among_a_million_steps() -> None:
    values = np.random.default_rng(0).normal(size=1_000_000)
    values[123_456], values[876_543] = 40.0, -40.0
    chosen = thin(values, 1_200)
    assert len(chosen) <= 1_200
    assert {0, 123_456, 876_543, 999_999} <= {*chosen.tolist()}
    assert (np.diff(chosen) > 0).all()


def test_thinning_keeps_short_curves_whole_and_skips_unknown_values() -> None:
    assert thin(np.array([3.0, np.nan, 1.0]), 4).tolist() == [0, 1, 2]
    values = np.full(100, np.nan)
    values[[17, 60]] = 1.0, 2.0
    assert {0, 17, 60, 99} <= {*thin(values, 10).tolist()}


def test_means_average_all_points_of_a_part() -> None:
    values = np.array([1.0, 3.0, 2.0, 8.0, np.nan, 4.0, 7.0, 7.0, 10.0, np.nan, np.nan, np.nan])
    assert thin(values, 10).tolist() == [0, 1, 3, 5, 6, 8, 9, 11]
    expected = [2.0, 2.0, 6.0, 6.0, 8.0, 8.0, np.nan, np.nan]
    np.testing.assert_array_equal(means(values, 10), expected)


def test_newest_mean_averages_the_last_values() -> None:
    assert newest_mean(np.arange(1001.0)) == sum(range(991, 1001)) / 10
    assert newest_mean(np.arange(30.0)) == 28
    assert newest_mean(np.array([1.0, np.nan])) == 1
    assert newest_mean(np.array([np.nan])) is None


def test_page_shows_a_real_run_and_its_restart(tmp_path: Path, finished: Path) -> None:
    run = tmp_path / "again"
    stop_midway(run, "pretrain", *options(run, epochs=4))
    assert command("pretrain", *options(run, epochs=4)).returncode == 0
    text = text_of(report(run, finished, "--baseline", finished))
    assert "SIGTERM" in text
    assert "kNN, untrained encoder" in text
    assert "vit_tiny_patch16_224" in text
    assert "Compared with finished" in text
    assert "epochs * 3 4" in text  # the baseline comes first
    assert re.search(r"command \* \S+__main__.py pretrain --data.workers 0 ", text)
    assert re.search(r"steps 90 of 90", text)


def test_activities_add_up_to_the_whole_time_of_a_run(tmp_path: Path) -> None:
    spent = seconds_by_activity(*read_runs([write_run(tmp_path / "run")]))
    # started at -0.5 s, killed at 19 s after a save of 15 steps at 14 s, restarted at 119.5 s, stopped at 159 s
    assert (spent["lost"], spent["away"], spent["train"]) == (5, 100.5, 29.5)
    assert sum(spent.values()) == 159.5


def test_energy_is_shown_with_its_co2_equivalent(tmp_path: Path) -> None:
    text = text_of(report(write_run(tmp_path / "run", energy_joules=7.2e6)))
    assert "GPU energy, kWh 2 " in text
    assert "CO2eq at 480 g/kWh, kg 0.96 " in text


def test_stages_have_their_shares_of_a_run(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run", size=[24, 24])])
    assert [(each.number, each.first_step, each.steps) for each in run.stages] == [(1, 0, 30), (2, 30, 30)]
    assert [(each.images, each.train_seconds) for each in run.stages] == [(30 * 64, 14.5), (30 * 64, 15)]
    np.testing.assert_allclose([each.progress for each in run.stages], 0.5)


def test_runs_are_compared_at_the_last_point_that_both_reached(tmp_path: Path) -> None:
    long, short = read_runs([write_run(tmp_path / "long"), write_run(tmp_path / "short", steps=30)])
    loss = f"{sum(1 / step for step in (28, 29, 30)) / 3:.4f}"  # of the last tenth of the first 30 rows
    assert comparison_table([long], short).rows == [
        ["long", "images", "1,920", loss, loss, UNKNOWN, UNKNOWN],
        ["long", "training time", "14.5 s", loss, loss, UNKNOWN, UNKNOWN],
    ]


def test_losses_are_compared_only_within_one_size_and_between_comparable_runs(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, steps=33, size=[24, 24]) for name in "ab"]
    *before, last, stop = (paths[0] / "journal.jsonl").read_text().splitlines(keepends=True)
    (paths[0] / "journal.jsonl").write_text("".join([*before, last.replace("[24, 24]", "[32, 32]"), stop]))
    run, baseline = read_runs(paths)
    mean = sum(1 / step for step in (31, 32, 33)) / 3
    assert comparison_table([run], baseline).rows[0][3:5] == [f"{1 / 33:.4f} at 32 px", f"{mean:.4f} at 24 px"]
    for path, target in zip(paths, ("pixels", "norm_pixels"), strict=True):
        (path / "config.yaml").write_text(f"model: {{target: {target}}}")
    run, baseline = read_runs(paths)
    table = comparison_table([run], baseline)
    assert "not comparable" in table.caption
    assert table.rows[0][3:5] == [UNKNOWN, UNKNOWN]


@pytest.mark.parametrize(("mask_ratio", "comparable"), [("null", True), ("0.75", True), ("0.6", False)])
def test_losses_under_other_masks_do_not_compare(mask_ratio: str, comparable: bool, tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, steps=33, size=[24, 24]) for name in "ab"]
    for path, ratio in zip(paths, (mask_ratio, "null"), strict=True):
        stages = f"[{{share: 1.0, size: 224, mask_ratio: {ratio}}}]"
        (path / "config.yaml").write_text(f"model: {{mask_ratio: 0.75}}\ncurriculum: {{stages: {stages}}}")
    run, baseline = read_runs(paths)
    table = comparison_table([run], baseline)
    assert (UNKNOWN not in table.rows[0][3:5]) == comparable


def test_stages_last_equivalent_and_real_epochs(finished: Path) -> None:
    (run,) = read_runs([finished])  # 40, 14 and 13 steps of 64 of 1438 images
    assert [row[2:4] for row in stage_table(run).rows] == [["1.8", "1.8"], ["0.6", "0.6"], ["0.6", "0.6"]]
    assert stage_table(run).head[2:4] == ["equivalent epochs", "real epochs"]


def test_outcome_of_a_session_ignores_a_job_that_never_started(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=9)  # stopped after 9 s
    with (run / "journal.jsonl").open("a") as journal:
        for row in (
            {"event": "error", "time": START + 50, "reason": "no images"},
            {"event": "lock_taken_over", "time": START + 7000, "last_beat": START + 6000},
            {"event": "start", "time": START + 7000, "steps_done": 9, "total_steps": 60},
        ):
            journal.write(json.dumps(row) + "\n")
    (run_data,) = read_runs([run])
    assert run_data.history.sessions[-2].ending == "SIGTERM"
    restart = run_data.history.restarts[-1]
    assert (restart.lost_seconds, restart.away_seconds + restart.before.last_sign) == (0, START + 7000)


def test_restart_with_other_images_discards_the_earlier_run(tmp_path: Path) -> None:
    journals = []
    for name, steps in (("1438 images", 30), ("9 images", 12)):
        journal = write_run(tmp_path / name, steps=steps) / "journal.jsonl"
        journals.append(
            journal.read_text().replace('"event": "start"', f'"event": "start", "data_fingerprint": "{name}"')
        )
    (journal.parent / "journal.jsonl").write_text("".join(journals))
    (run_data,) = read_runs([journal.parent])
    assert run_data.curves["steps_done"].tolist() == list(range(1, 13))
    assert (len(run_data.history.sessions), run_data.steps_done) == (2, 12)


def test_results_of_different_checkpoints_and_heads_are_listed_separately(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=9)
    with (run / "journal.jsonl").open("a") as journal:
        for event, checkpoint, head, share in (
            ("knn", "run", None, 0.94),
            ("knn", "run@30", None, 0.86),
            ("linprobe", "run", "linear", 0.97),
            ("linprobe", "run", "attentive", 0.98),
        ):
            accuracy = {"mean": share, "std": None, "values": [share]}
            facts = {"checkpoint": checkpoint, "head": head, "source": "digits", "accuracy": accuracy}
            row = {"event": event, "time": START + 99, **facts}
            journal.write(json.dumps(row) + "\n")
    (run_data,) = read_runs([run])
    assert results_of(run_data) == {
        "kNN on digits": "94.0%",
        "kNN after 30 epochs on digits": "86.0%",
        "linear probe on digits": "97.0%",
        "attentive probe on digits": "98.0%",
    }


def test_classifiers_are_compared_by_their_own_accuracy(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name) for name in "ab"]
    for path, accuracy in zip(paths, (0.5, 0.75), strict=True):
        with (path / "journal.jsonl").open("a") as journal:
            evaluation = {"event": "evaluation", "time": START + 999, "steps_done": 50}
            evaluation |= {"accuracy": accuracy, "val_loss": 0.5}
            journal.write(json.dumps(evaluation) + "\n")
    run, baseline = read_runs(paths)
    table = comparison_table([run], baseline)
    assert table.head[-2:] == ["accuracy", "baseline accuracy"]
    assert [row[-2:] for row in table.rows] == [["50.0%", "75.0%"]] * 2
    assert "Validation loss" in text_of(report(*paths))


def test_runs_have_unique_names_and_are_listed_once(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / place / "run", steps=9) for place in "ab"]
    assert [run.name for run in read_runs([*paths, paths[0] / ".." / "run"])] == ["a/run", "b/run"]
    assert [run.name for run in read_runs(paths[:1])] == ["run"]


def test_user_controlled_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('&')<"
    run = write_run(tmp_path / "<i>&amp;\"'")
    with (run / "journal.jsonl").open("a") as journal:
        for event in (
            {"event": "broken_image", "time": START + 999, "steps_done": 3, "image": evil, "reason": evil},
            {"event": "error", "time": START + 999, "reason": evil},
            {"event": "knn", "time": START, "checkpoint": "x", "source": evil, "accuracy": {"mean": 0.5, "std": None}},
        ):
            journal.write(json.dumps(event) + "\n")
    (run / "config.yaml").write_text(f'data: {{source: "{evil}"}}\n')
    page = report(run)
    assert "<script>alert" not in page
    assert "&lt;i&gt;&amp;amp;" in page
    assert page.count("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;") >= 4


def test_names_that_are_not_utf8_are_spelled_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / os.fsdecode(b"caf\xe9"))
    (run / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(run / "pictures" / os.fsdecode(b"\xff.png"))
    assert "caf\\udce9 stopped" in text_of(report(run))


def test_truncated_and_older_journals_can_be_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", loss=None)
    with (run / "journal.jsonl").open("ab") as journal:
        journal.write(b'\xff\n{"event": "step", "steps_done": 61, "lo')
    text = text_of(report(run))
    assert "steps 60 of 60" in text
    (run / "journal.jsonl").write_text(f'{{"event": "start", "time": {START}, "steps_done": 0}}\nno json\n')
    assert "steps 0 " in text_of(report(run))


def test_pictures_are_embedded_small_and_broken_ones_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "Pictures" not in text_of(report(run))
    (run / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1000, 2000, 3), dtype=np.uint8)
    first = run / "pictures" / "step-00000000.png"
    Image.fromarray(noise).save(first, compress_level=0)
    for step in range(1, 9):
        shutil.copy(first, run / "pictures" / f"step-{step:08}.png")
    (run / "pictures" / "step-00000009.png").write_bytes(b"no picture")
    page = report(run)
    assert 1 <= page.count("<img ") <= 6
    assert len(page) < 5_000_000


def test_missing_runs_and_unwritable_files_are_one_line_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "not-started").mkdir()
    (tmp_path / "not-started" / "journal.jsonl").write_text("{}\n")
    for words, reason in (
        ([tmp_path / "empty"], "a run's folder has a journal.jsonl"),
        ([tmp_path / "not-started"], "its journal has no start"),
        ([run, "--out", tmp_path / "none" / "page.html"], "cannot be written (No such file or directory); choose"),
        ([], "runs"),
    ):
        assert main(["report", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1


def test_read_only_folder_needs_another_out(
    small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = write_run(small_disk("1m") / "run")
    small_disk("1m,ro")
    assert main(["report", str(run)]) == 2
    assert "report.html cannot be written (Read-only file system); choose another --out" in capsys.readouterr().err
    assert "steps 60 of 60" in text_of(report(run, "--out", tmp_path / "page.html"))


def test_charts_are_controlled_by_keyboard_and_mouse(tmp_path: Path, page: Page) -> None:
    runs = [write_run(tmp_path / "long", gradient_norm=1.5), write_run(tmp_path / "short", steps=30)]
    report(*runs, "--baseline", runs[1])
    page.open(runs[0] / "report.html")
    readings = "[...document.querySelectorAll('figure:first-child .value')].map(each => each.textContent)"
    restarts = "charts[0].plot.renderers.filter(each => each.name === 'restart-1')"
    restart = f"{restarts}.map(each => each.data_source.get_array(each.glyph.x.field)[0])[0]"
    assert page.run(readings) == ["0.03333", "0.01667"]  # the last of each
    assert page.run(restart) == 15
    assert page.run("charts.length") == 2

    page.run("document.querySelector('[name=axis]').focus()")
    page.press("ArrowRight")
    assert page.run("document.activeElement.value") == "images"
    assert page.run("charts[0].plot.x_range.end") == pytest.approx(60 * 64 * 1.01)
    assert page.run(restart) == 15 * 64

    page.run("document.getElementById('slider').focus()")
    page.press("Home")
    page.press("ArrowRight")
    assert page.run(readings) == ["1", "1"]
    assert page.run("document.getElementById('slider').getAttribute('aria-valuetext')").split() == [
        *["Images:", "4.", "Loss"],
        *["short", "1", "long", "1"],
    ]

    page.move_to("#chart-0", share=0.9)
    assert page.run(readings)[0] == "ended"
    assert 0.016 < float(page.run(readings)[1]) < 0.025

    page.run("document.querySelector('[value=log]').click()")
    assert page.run("charts.map(each => each.plot.y_scale.type)") == ["LogScale"] * 2
    low, high = page.run("[charts[0].plot.y_range.start, charts[0].plot.y_range.end]")
    assert 0.01 < low < 1 / 60 < 1 < high < 2
    assert page.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_page_is_readable_in_both_themes(tmp_path: Path, page: Page, dark: bool) -> None:
    run = write_run(tmp_path / "run")
    (run / "pictures").mkdir()
    Image.new("RGB", (90, 60)).save(run / "pictures" / "step-00000010.png")
    (run / "config.yaml").write_text("model: {name: vit}\n")
    report(run, write_run(tmp_path / "other"), "--baseline", run)
    for width in (1280, 390):
        page.open(run / "report.html", width=width, dark=dark)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(LEAST_CONTRAST) >= 4.5
    page.run("document.getElementById('theme').focus()")
    page.press("Enter")
    assert page.run(LEAST_CONTRAST) >= 4.5
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if dark else "rgb(20, 23, 28)")
    assert page.run("charts[0].plot.left[0].major_label_text_color") == page.run("color('.name')")
    assert page.complaints == []


LEAST_CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const pixel = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255);
  };
  const light = color => pixel(color).slice(0, 3)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = each => {
    const own = getComputedStyle(each).backgroundColor;
    return pixel(own)[3] < 1 ? background(each.parentElement) : own;
  };
  let least = 21;
  for (const each of document.body.querySelectorAll("*:not(script, style, noscript)")) {
    if (![...each.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [ink, paper] = [light(getComputedStyle(each).color), light(background(each))];
    least = Math.min(least, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
  }
  return least;
})()"""
"""Lowest contrast of any text with its background, as defined by WCAG 2."""


def test_every_element_has_an_accessible_name(tmp_path: Path, page: Page) -> None:
    run = write_run(tmp_path / "run")
    (run / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(run / "pictures" / "step-00000010.png")
    report(run)
    page.open(run / "report.html")
    nameless = """[
      ...[...document.images].filter(each => !each.alt),
      ...[...document.querySelectorAll("[role=img]")].filter(each => !each.ariaLabel),
      ...[...document.querySelectorAll("input")].filter(each => !each.labels.length),
      ...[...document.querySelectorAll("fieldset")].filter(each => !each.querySelector("legend")),
      ...[...document.querySelectorAll("th")].filter(each => !each.scope || !each.textContent.trim()),
      ...[...document.querySelectorAll("nav a")].filter(each => !document.querySelector(each.hash)),
    ].map(each => each.outerHTML)"""
    assert page.run(nameless) == []
    assert page.run("document.documentElement.lang") == "en"
    ids = page.run("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


def test_page_of_a_million_steps_is_small_and_fast_and_shows_spikes(tmp_path: Path, page: Page) -> None:
    steps, every = 1_000_000, 10
    with (tmp_path / "journal.jsonl").open("w") as journal:
        journal.write(f'{{"event": "start", "time": {START}, "steps_done": 0, "total_steps": {steps}}}\n')
        for step in range(every, steps + 1, every):
            loss = 77 if step == 314_150 else 1 + step % 7 / 7
            journal.write(
                f'{{"event": "step", "time": {START + step}, "steps_done": {step}, "images": {64 * step}, '
                f'"loss": {loss}, "gradient_norm": {step % 11}, "train_seconds": {step}}}\n'
            )
    report(tmp_path)
    out = tmp_path / "report.html"
    assert out.stat().st_size < 2_000_000
    assert any(page.open(out) < 2 for _ in range(3))  # the machine may be busy
    assert page.run("Math.max(...curves(charts[0].plot)[0].data_source.get_array('value'))") == 77
    assert page.complaints == []


def write_by_block(run: Path) -> Path:
    """Write the journal of a run with a kNN evaluation by block."""
    by_block = [{"mean": share, "std": None, "values": [share]} for share in (0.2, 0.8, 0.6)]
    row = {"event": "knn", "time": START, "checkpoint": str(run), "source": "digits", "block": "all"}
    row |= {"accuracy": by_block[-1], "by_block": by_block}
    with (write_run(run) / "journal.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return run


def test_accuracies_by_block_are_drawn_and_tabulated(tmp_path: Path) -> None:
    page = report(write_by_block(tmp_path / "run"))
    assert 'points="48.0,152.0 320.0,48.0 592.0,82.7"' in page  # lowest at the bottom, highest at the top
    assert '<circle cx="592.0" cy="82.7" r="3.5"/>' in page
    assert "kNN on digits, by block" in text_of(page)
    assert "0 20.0% 1 80.0% 2 60.0%" in text_of(page)


def test_by_block_more_runs_than_colors_differ_in_dashes(tmp_path: Path) -> None:
    page = report(*(write_by_block(tmp_path / f"run{number}") for number in range(7)))
    assert page.count('<g class="run-0 dash-0">') == page.count('<g class="run-0 dash-1">') == 1
