"""Reports as readers meet them: opened in a browser, at a desk and on a phone, light and dark, with mouse and keys."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from anabranch.cluster.cli import cli
from anabranch.engine.output import read_survey_rows, read_tensor_rows
from anabranch.engine.storage.local import LocalStore

from ..browser import Browser, find_chromium
from ..merging import load_output, write_recipe
from ..report_models import LACKING, MODELS, write_models

pytest.importorskip("vl_convert", reason="pictures need vl-convert-python: pip install 'anabranch[report]'")
needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium here to open reports in")
VIEWS = [(1280, 900, "light"), (390, 844, "dark"), (1280, 900, "dark"), (390, 844, "light")]
LAYERS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge with its report, which has times, and a report made of the output later."""
    folder = tmp_path_factory.mktemp("report")
    recipe, out = write_models(folder, LAYERS), str(folder / "out")
    run("merge", str(recipe), out, "--report", str(folder / "merge.html"))
    run("report", out, "--out", str(folder / "report.html"))
    return folder


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


def show(browser: Browser, page: Path, view: tuple[int, int, str] = VIEWS[0]) -> None:
    browser.look(*view)
    browser.open(page)
    browser.wait_for(DRAWN)


DRAWN = "document.readyState == 'complete' && document.body.dataset.drawn != '0'"
CLIPPED = """[...document.querySelectorAll('.chart svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const at = text.getBoundingClientRect();
    return at.width && (at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 ||
      at.bottom > box.bottom + 1 || text.textContent.endsWith('…'));
  }).map(text => svg.closest('.chart').id + ': ' + text.textContent);
})"""
UNDRAWN = """[...document.querySelectorAll('.chart')].filter(chart =>
  ![...chart.querySelectorAll('path, rect')].some(mark => mark.__data__ && mark.__data__.tooltip &&
    mark.getBoundingClientRect().width > 0)).map(chart => chart.id)"""
WIDE = """[...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll, svg, script, .skip') &&
  each.getBoundingClientRect().right > innerWidth + 1).map(each => each.tagName + ': ' + each.id)"""


@needs_browser
@pytest.mark.parametrize(
    "view",
    [*VIEWS[:2], *(pytest.param(view, marks=pytest.mark.slow) for view in VIEWS[2:])],
    ids=lambda view: f"{view[0]} {view[2]}",
)
def test_every_picture_is_drawn_and_nothing_is_clipped_or_fetched(place: Path, browser: Browser, view: Any) -> None:
    show(browser, place / "merge.html", view)
    assert browser.evaluate("document.body.dataset.drawn") == str(9 + 3 + 6 + 2)
    assert browser.evaluate(UNDRAWN) == []
    assert browser.evaluate(CLIPPED) == []
    assert browser.evaluate(WIDE) == []
    assert (browser.complaints, browser.requests) == ([], [])
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if view[2] == "light" else "rgb(20, 23, 28)")
    ink = browser.evaluate("getComputedStyle(document.querySelector('.chart svg .role-axis-title text')).fill")
    assert ink == ("rgb(27, 31, 36)" if view[2] == "light" else "rgb(232, 234, 237)")


def table_of(browser: Browser, name: str) -> list[dict[str, str]]:
    """Rows of the table behind a figure, by column."""
    found = browser.evaluate(
        f"[...document.querySelectorAll('#{name} tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


@needs_browser
def test_hovering_shows_what_the_table_says(place: Path, browser: Browser) -> None:
    show(browser, place / "report.html")
    cells = {(row["model"], row["layer"], row["kind"]): row for row in table_of(browser, "density")}
    assert len(cells) == 3 * (9 * LAYERS + 1) - 1
    for figure, column in (("density", "density"), ("kept", "kept"), ("overlap", "overlap")):
        for i, mark in ((0, 0), (1, 17), (2, 5)):
            shown = hover(browser, f"{figure}-{i}", mark)
            key = (f"{i} {MODELS[i]}", shown["layer"], shown["kind"])
            assert list(shown.values())[-1] == cells[key][column]
    for row in table_of(browser, "energy"):
        shown = hover(browser, "energy-0", 2 * int(row["model"][0]))
        assert shown["share"] == row[shown["which"]]


def hover(browser: Browser, chart: str, mark: int) -> dict[str, str]:
    """What is shown when the mouse is on a mark."""
    marks = f"[...document.querySelectorAll('#{chart} path')].filter(m => m.__data__ && m.__data__.tooltip)[{mark}]"
    browser.evaluate(f"{marks}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box = browser.evaluate(
        f"(() => {{const b = {marks}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]}})()"
    )
    browser.move_to(1, 1)
    browser.move_to(box[0] + box[2] / 2, box[1] + box[3] / 2)
    browser.wait_for("document.querySelector('#vg-tooltip-element.visible') != null")
    rows = "[...document.querySelectorAll('#vg-tooltip-element tr')].map(row => [...row.cells].map(c => c.textContent))"
    return {key.strip().rstrip(":"): value.strip() for key, value in browser.evaluate(rows)}


@needs_browser
def test_arrow_keys_say_what_hovering_shows(place: Path, browser: Browser) -> None:
    show(browser, place / "report.html")
    shown = hover(browser, "density-1", 1)
    browser.evaluate("document.getElementById('density-1').focus()")
    for key in ("ArrowRight", "ArrowRight"):
        browser.press(key)
    said = "document.getElementById('density-1').parentElement.querySelector('output').textContent"
    assert browser.evaluate(said) == ", ".join(f"{key}: {value}" for key, value in shown.items())
    browser.press("Escape")
    assert browser.evaluate(said) == ""


@needs_browser
def test_every_figure_says_what_the_parquet_tables_say(place: Path, browser: Browser) -> None:
    show(browser, place / "report.html")
    rows = list(read_tensor_rows(LocalStore(place / "out")))
    names = [f"{i} {model}" for i, model in enumerate(MODELS)]
    by_place = {(row["model"], row["tensor"]): row for row in rows}
    for row in table_of(browser, "density"):
        stem = f"{row['kind']}.weight" if row["layer"] == "-" else f"model.layers.{row['layer']}.{row['kind']}.weight"
        found = by_place[names.index(row["model"]), stem]
        assert (row["tensors"], row["elements"]) == ("1", f"{found['numel']:,}")
        assert row["density"] == f"{found['density']:.2%}"
        assert row["kept"] == f"{found['kept'] / found['numel']:.2%}"
        assert row["energy kept"] == f"{found['energy_kept']:.2%}"
    squares: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    claims: Counter[int] = Counter()
    for row in rows:
        layer = row["tensor"].split(".")[2] if ".layers." in row["tensor"] else "-"
        for place_, key in enumerate(("l2", "kept_l2")):
            squares[names[row["model"]], layer][place_] += row[key] ** 2
        if row["model"] == 0:
            claims.update(dict(enumerate(row["claims"])))
    norms = [
        [math.sqrt(float(each)) for each in squares[row["model"], row["layer"]]] for row in table_of(browser, "norms")
    ]
    assert [list(row.values())[2:4] for row in table_of(browser, "norms")] == [
        [f"{n:.4g}" for n in two] for two in norms
    ]
    assert [row["positions"] for row in table_of(browser, "claims")] == [f"{claims[n]:,}" for n in range(4)]
    for row in table_of(browser, "pairs"):
        a, b = names.index(row["A"]), names.index(row["B"])
        both = sum(each["overlaps"][b] for each in rows if each["model"] == a)
        kept = [sum(each["kept"] for each in rows if each["model"] == i) for i in (a, b)]
        assert [*row.values()][2:] == [f"{both:,}", f"{both / (sum(kept) - both):.2%}", f"{both / min(kept):.2%}"]
    densities = Counter((row["model"], int(row["density"] * 40)) for row in rows)
    assert sum(int(row["tensors"]) for row in table_of(browser, "densities")) == densities.total()
    surveyed = Counter(int(row["redundancy"] * 40) for row in read_survey_rows(LocalStore(place / "out")))
    assert sum(int(row["tensors"]) for row in table_of(browser, "statistics")) == surveyed.total()
    actions = {(row["what"], row["tensors"]) for row in table_of(browser, "actions")}
    assert actions == {("merged", str(9 * LAYERS + 1)), ("copied", "1"), ("missing", "1")}
    assert LACKING in browser.evaluate("document.querySelector('.warnings').textContent")


def test_a_report_is_one_small_file_and_pictures_need_no_browser(place: Path) -> None:
    for page in ("merge.html", "report.html"):
        text = (place / page).read_text()
        assert len(text.encode()) < 3_000_000
        assert "default-src 'none'" in text
    plain = (place / "report.html").read_text()
    assert "<h2>What was merged</h2>" in plain and "mean: 0.42" in plain
    out = str(place / "out")
    run("report", out, "--out", str(place / "report.png"))
    run("report", out, "--out", str(place / "pictures"), "--format", "svg")
    assert (place / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    drawn = (place / "pictures").read_text()
    assert drawn.startswith("<svg") and "Overlap of pairs of models" in drawn


def test_a_report_of_nothing_finished_or_to_nowhere_says_so(place: Path, tmp_path: Path) -> None:
    for arguments, code, words in (
        (("report", str(tmp_path)), 4, "is not finished"),
        (("report", str(place / "out"), "--out", str(tmp_path / "report.pdf")), 2, ".html, .png or .svg"),
        (("report", str(place / "out"), "--out", str(tmp_path), "--format", "png"), 2, "is a folder"),
        (("merge", str(place / "recipe.yml"), str(tmp_path / "o"), "--report", "r.txt"), 2, ".html, .png or .svg"),
    ):
        done = CliRunner().invoke(cli, arguments)
        assert (done.exit_code, words in done.output) == (code, True), done.output
    assert not (tmp_path / "o").exists()


@needs_browser
def test_a_comparison_shows_what_its_json_says(place: Path, tmp_path: Path, browser: Browser) -> None:
    other = yaml.safe_load((place / "recipe.yml").read_text())
    other["parameters"]["density"]["tadrop"]["mean"] = 0.3
    out = str(tmp_path / "other")
    run("merge", str(write_recipe(tmp_path / "other.yml", other)), out)
    page = tmp_path / "comparison.html"
    done = CliRunner().invoke(cli, ["compare", str(place / "out"), out, "--json", "--report", str(page)])
    assert done.exit_code == 1
    found = {each["tensor"]: each for each in json.loads(done.stdout.splitlines()[-1])["differences"]}
    for view in VIEWS[:2]:
        show(browser, page, view)
        assert browser.evaluate(UNDRAWN) == [] and browser.evaluate(CLIPPED) == [] and browser.evaluate(WIDE) == []
        assert (browser.complaints, browser.requests) == ([], [])
    for row in table_of(browser, "tensors"):
        each = found[row["tensor"]]
        assert row["differ"] == f"{each['differing'] / each['elements']:.2%}"
        assert (row["relative"], row["largest"]) == (f"{each['relative']:.4g}", f"{each['largest']:.4g}")
    for row in table_of(browser, "differing"):
        stem = f"{row['kind']}.weight" if row["layer"] == "-" else f"model.layers.{row['layer']}.{row['kind']}.weight"
        same = {"differing": 0, "elements": 1, "relative": 0.0}
        assert row["relative"] == f"{found.get(stem, same)['relative']:.4g}"
    mine, theirs = (
        {(row["model"], row["tensor"]): row for row in read_tensor_rows(LocalStore(Path(each)))}
        for each in (place / "out", out)
    )
    key = (1, "model.layers.2.mlp.up_proj.weight")
    [moved] = [row for row in table_of(browser, "moved-kept") if [*row.values()][:3] == ["1", "2", "mlp.up_proj"]]
    shares = [rows[key]["kept"] / rows[key]["numel"] for rows in (mine, theirs)]
    assert [*moved.values()][3:] == [f"{shares[0]:.2%}", f"{shares[1]:.2%}", f"{shares[1] - shares[0]:+.2%}"]


@needs_browser
def test_a_survey_counts_every_change_by_its_size(place: Path, tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "survey.html"
    run("survey", str(place / "recipe.yml"), "--out", str(tmp_path / "survey.parquet"), "--plot", str(page))
    for view in VIEWS[2:]:
        show(browser, page, view)
        assert browser.evaluate(UNDRAWN) == [] and browser.evaluate(CLIPPED) == [] and browser.evaluate(WIDE) == []
        assert (browser.complaints, browser.requests) == ([], [])
    base = load_output(place / "base")
    expected = {}
    for i, model in enumerate(MODELS):
        tuned = load_output(place / model)
        changes = [tuned[name].float() - base[name].float() for name in tuned if "embed" not in name]
        sizes = np.abs(np.concatenate([change.numpy().reshape(-1) for change in changes]))
        octaves = Counter(np.floor(np.log2(sizes[sizes > 0].astype(np.float64))).astype(int).tolist())
        expected |= {(f"{i} {model}", str(octave)): f"{count:,}" for octave, count in octaves.items()}
    table = table_of(browser, "sizes")
    assert {(row["model"], row["power of 2"]): row["elements"] for row in table} == expected
    assert hover(browser, "sizes-0", 0)["elements"] in expected.values()
