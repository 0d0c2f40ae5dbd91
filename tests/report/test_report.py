"""Grids, charts and the page: exact pixels, sensible ticks, whatever a folder of runs may hold."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fewstep.data.grid import save_image
from fewstep.metrics.protocol import MetricResult, write_results
from fewstep.report import Reference, Series, grid, line_chart, save_png, write_report
from fewstep.report.axes import BUCKETS, smooth, thin
from fewstep.report.numerals import duration, human, linear_ticks, log_ticks, tick_labels
from fewstep.report.records import find_cards, read_log

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert('\"&')</script>\x00\x1b\ud800"


@pytest.mark.parametrize("code", ["import fewstep", "import fewstep.report", "fewstep.cli.main(['--help'])"])
def test_what_draws_nothing_needs_neither_torch_nor_jinja2(code):
    code = f"import sys, fewstep.cli; {code}; print({{'torch', 'jinja2'}} & {{*sys.modules}}, file=sys.stderr)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr == "set()\n"


# Grids


def test_grid_is_exact():
    images = np.arange(3 * 2 * 2 * 1, dtype=np.uint8).reshape(3, 2, 2, 1)
    expected = np.array(
        [
            [0, 1, 255, 4, 5],
            [2, 3, 255, 6, 7],
            [255, 255, 255, 255, 255],
            [8, 9, 255, 255, 255],
            [10, 11, 255, 255, 255],
        ]
    )
    made = grid(images, columns=2, scale=1)
    assert made.mode == "L"
    np.testing.assert_array_equal(np.asarray(made), expected)
    magnified = np.asarray(grid(images, columns=2, scale=3))
    np.testing.assert_array_equal(magnified, expected.repeat(3, 0).repeat(3, 1))


def test_grid_defaults():
    assert grid(np.zeros((10, 8, 8, 3), np.uint8)).size == (5 * (4 * 9 - 1), 5 * (3 * 9 - 1))
    assert grid(np.zeros((64, 16, 3), np.uint8)).size == (48, 192)
    assert grid(np.zeros((2, 64, 64, 1), np.uint8), columns=8, gap=0).size == (128, 64)
    coloured = grid(np.zeros((3, 4, 4, 3), np.uint8), columns=2, scale=1, background=(1, 2, 3))
    assert coloured.mode == "RGB" and coloured.getpixel((4, 0)) == (1, 2, 3) == coloured.getpixel((8, 8))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_of_other_images_stand_side_by_side(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, channels), dtype=np.uint8)
    made = np.asarray(grid(images, columns=1, scale=1))
    assert made.shape == (7, 5 * channels - 1)
    for i, image in enumerate(images):
        for k in range(channels):
            assert np.array_equal(made[4 * i : 4 * i + 3, 5 * k : 5 * k + 4], image[..., k])
    assert (made[3] == 255).all() and (made[:, 4] == 255).all()
    assert grid(images, scale=1).size == (10 * channels - 1, 3)
    save_image(images[0], tmp_path / "a.b")
    assert [p.name for p in tmp_path.iterdir()] == ["a.b.npy"]
    assert np.array_equal(np.load(tmp_path / "a.b.npy"), images[0].transpose(2, 0, 1))


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 0), np.uint8), np.zeros((0, 2, 2, 3), np.uint8)],
)
def test_grid_refuses_what_is_no_image(images):
    with pytest.raises(ValueError, match="uint8 images of shape"):
        grid(images)


def test_grid_refuses_odd_options():
    image = np.zeros((2, 2, 1), np.uint8)
    for options in ({"columns": 0}, {"scale": 0}, {"gap": -1}):
        with pytest.raises(ValueError, match="at least"):
            grid(image, **options)
    with pytest.raises(ValueError, match="background"):
        grid(image, background=(1, 2, 3))


def test_png_is_lossless_and_leaves_nothing_behind(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    save_png(grid(images), tmp_path / "new/grid.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/grid.png")), np.asarray(grid(images)))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]


# Numbers and ticks


def test_human_numbers():
    told = {0: "0", 3.8712: "3.871", 51200: "51.2k", 999960: "1M", 2e-4: "2e-4", -0.00123: "-0.00123", 1e16: "1e16"}
    assert {value: human(value) for value in told} == told
    assert [human(v) for v in (math.nan, math.inf, -math.inf)] == ["NaN", "inf", "-inf"]
    assert (human(41.2, zeros=True), human(0.97, 3, zeros=True)) == ("41.20", "0.970")
    times = {0.1234: "0.123 s", 59.97: "1 min", 185: "3 min 5 s", 3599.9: "1 h", 7800: "2 h 10 min", 532800: "6 d 4 h"}
    assert {value: duration(value) for value in times} == times


def test_ticks_are_round_and_inside():
    assert linear_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert linear_ticks(-3, 117) == [0, 25, 50, 75, 100]
    assert log_ticks(0.5, 40) == [0.5, 1, 2, 5, 10, 20]
    assert log_ticks(1e-8, 1e8) == [1e-6, 1e-3, 1, 1e3, 1e6]
    assert log_ticks(0.0015, 7, 4) == [0.01, 0.1, 1]  # eleven of 1, 2, 5 would touch
    rng = np.random.default_rng(0)
    for low, span in zip(rng.normal(0, 100, 300), 10 ** rng.uniform(-5, 9, 300), strict=True):
        ticks = linear_ticks(low, low + span)
        assert 3 <= len(ticks) <= 9 and low <= ticks[0] and ticks[-1] <= low + span
        assert np.ptp(np.diff(ticks)) < 1e-6 * span and len(set(tick_labels(ticks))) == len(ticks)
    for low, ratio in zip(10 ** rng.uniform(-9, 9, 300), 10 ** rng.uniform(0.05, 15, 300), strict=True):
        ticks = log_ticks(low, low * ratio)
        assert 2 <= len(ticks) <= 12 and low <= ticks[0] * (1 + 1e-9) and ticks[-1] <= low * ratio * (1 + 1e-9)
        assert len(set(tick_labels(ticks))) == len(ticks)


def test_even_ticks_have_the_same_decimals():
    assert tick_labels([0.0, 0.25, 0.5]) == ["0", "0.25", "0.50"]
    assert tick_labels([0.5, 1.0, 2.0, 5.0]) == ["0.5", "1", "2", "5"]


# Charts


def chart(*series: Series, **options) -> ET.Element:
    return ET.fromstring(line_chart(series, title=options.pop("title", "t"), **options))


def texts(svg: ET.Element) -> list[str]:
    return ["".join(t.itertext()) for t in svg.iter(f"{SVG}text")]


def coordinates(svg: ET.Element, kind: str) -> list[tuple[float, float]]:
    """Of the vertices of lines, or of the centres of markers."""
    found = []
    for mark in svg.findall(f"{SVG}path"):
        if mark.get("class") == kind:
            place = mark.get("transform") if kind == "marker" else mark.get("d")
            numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", place or "")]
            found += zip(numbers[::2], numbers[1::2], strict=True)
    return found


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "y",
    [
        [],
        [0.0],
        [7.0] * 5,
        [-3.0] * 5,
        [math.nan] * 3,
        [math.inf, -math.inf, 1.0],
        [1e300, 1.0],
        [5e-324, 1e-99, 1e99],
        [1.0, 1.0 + 2**-52],
        [1e9, 1e9 + 1],
        list(range(-5, 6)),
        [1e-3, 1e7],
    ],
)
@pytest.mark.parametrize("style", ["line", "points", "line+points", "smoothed"])
def test_chart_survives_awkward_numbers(y, log, style):
    svg = chart(Series("s", np.arange(len(y)), y, style, [NASTY] * len(y)), log_x=log, log_y=log)
    for a, b in coordinates(svg, "line") + coordinates(svg, "marker"):
        assert 0 <= a <= 480 and 0 <= b <= 300
    assert "nan" not in ET.tostring(svg, encoding="unicode")


def test_chart_survives_awkward_places():
    svg = chart(Series("s", [math.nan, 1e308, -1e308, 1], [0, 1, 2, 3], "line+points"))
    assert len(coordinates(svg, "marker")) == 1 and "Not drawn: 3 not finite." in texts(svg)


def test_chart_puts_points_where_they_belong():
    svg = chart(Series("s", [0, 1, 4], [0, 10, 40], "line+points"))
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg, "marker")
    assert x0 < x1 < x2 and y0 > y1 > y2
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, rel=0.01) and (y0 - y2) / (y0 - y1) == pytest.approx(4, rel=0.01)
    svg = chart(Series("s", [1, 10, 100], [3, 30, 3000], "line+points"), log_x=True, log_y=True)
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg, "marker")
    assert (x2 - x0) / (x1 - x0) == pytest.approx(2, rel=0.01) and (y0 - y2) / (y0 - y1) == pytest.approx(3, rel=0.01)


def test_chart_says_what_it_leaves_out():
    svg = chart(Series("s", range(6), [1, math.nan, math.inf, 0, -1, 2]), log_y=True)
    assert "Not drawn: 2 not finite, 2 not positive (log axis)." in texts(svg)
    assert "Not drawn" not in "".join(texts(chart(Series("s", [1, 2], [3, 4]))))
    assert "no data" in texts(chart(Series("s", [], []))) and "no data" in texts(chart())


def test_chart_names_and_describes_its_series():
    svg = chart(Series("a & b", [1, 2], [3, 4.5]), Series("c", [1, 2], [5, 6]), title="T", x_label="X", y_label="Y")
    assert {"T", "X", "Y", "a & b", "c"} <= set(texts(svg))
    assert svg.findtext(f"{SVG}title") == "T"
    assert svg.findtext(f"{SVG}desc") == "Y over X. a & b: 2 points, y from 3 to 4.5. c: 2 points, y from 5 to 6."


def test_chart_makes_room_for_references_and_labels():
    svg = chart(Series("s", [1, 2], [3, 4], "points", ["first", "second"]), reference_lines=[Reference("real", 20)])
    assert {"real", "first", "second"} <= set(texts(svg))
    (line,) = [p.get("d") for p in svg.iter(f"{SVG}path") if p.get("class") == "reference"]
    assert line and 0 < float(line.split(" ")[1].split("H")[0]) < min(y for _, y in coordinates(svg, "marker"))


def test_labels_that_would_overlap_are_left_out():
    crowd = Series("s", np.linspace(0, 1, 200), np.zeros(200), "points", [f"value {i}" for i in range(200)])
    assert 1 <= sum(t.startswith("value") for t in texts(chart(crowd))) < 20


def test_many_series_stay_apart():
    svg = chart(*(Series(f"series {i}", [0, 1], [i, i + 1]) for i in range(16)))
    looks = [(p.get("style"), p.get("stroke-dasharray")) for p in svg.findall(f"{SVG}path") if p.get("class") == "line"]
    assert len(set(looks)) == 16


def test_slot_keeps_the_colour():
    (line,) = [p for p in chart(Series("s", [0, 1], [0, 1], slot=4)).findall(f"{SVG}path") if p.get("class") == "line"]
    assert line.get("style") == "--c:var(--s4)"


def test_thinning_keeps_extremes_and_ends():
    x = np.arange(50_000.0)
    y = np.random.default_rng(0).normal(size=50_000)
    y[31_234], y[7_001] = 9.0, -9.0
    u, v = thin(x, y)
    assert len(u) <= 2 * BUCKETS + 2 and (np.diff(u) > 0).all()
    assert (u[0], u[-1], v.max(), v.min()) == (0, 49_999, 9, -9)
    np.testing.assert_array_equal(v, y[u.astype(int)])
    assert len(line_chart([Series("s", x, y, "smoothed")], title="t")) < 30_000


def test_smoothing_keeps_a_line_within_and_averages():
    line = np.arange(200.0)
    np.testing.assert_allclose(smooth(line)[10:-10], line[10:-10])
    noise = np.random.default_rng(0).normal(size=4000)
    assert smooth(noise).std() < 0.15


def test_chart_refuses_unequal_lengths():
    with pytest.raises(ValueError, match=r"series 's' .* shapes \(2,\), \(3,\)"):
        line_chart([Series("s", [1, 2], [1, 2, 3])], title="t")


# Records


def test_log_skips_torn_lines_and_follows_a_resume(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"nimg": n, "seconds": n / 10, "loss": n * 1.0} for n in (10, 20, 30)]
    again = [{"nimg": 20, "seconds": 2.5, "loss": -2.0}, {"nimg": 30, "seconds": 3.5, "loss": "nan", "fd": 1}]
    text = (
        "\n".join(map(json.dumps, lines))
        + '\n{"nimg": 40, "lo\n[]\n\n'
        + "\n".join(map(json.dumps, again))
        + '\n{"nimg'
    )
    path.write_bytes(text.encode() + b"\xff")
    log = read_log(path)
    assert (log.unreadable, log.repeated, log.seconds) == (3, 2, 3.5)
    np.testing.assert_array_equal(log.curves["loss"].nimg, [10, 20, 30])
    np.testing.assert_array_equal(log.curves["loss"].value, [10, -2, math.nan])
    np.testing.assert_array_equal(log.curves["fd"], [[30], [1]])
    assert read_log(tmp_path / "none.jsonl").curves == {}


def test_cards_of_snapshots_are_the_last(tmp_path):
    for folder in ("model", "run/snapshots/000", "run/snapshots/128", ".model.partial-1", "docs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "README.md").write_text("card")
        if folder != "docs":
            (tmp_path / folder / "config.json").write_text("{}")
    assert [p.parent.name for p in find_cards(tmp_path)] == ["model", "128"]


# The page


def write_run(folder, name="teacher", *, steps=100, **info):
    (folder / "samples").mkdir(parents=True)
    keys = ("denoising_loss", "grad_norm/denoiser", "fd_pixels", "nonfinite/denoiser")
    record = {"name": name, "identity": {"method": {"kind": "Pretraining"}, "seed": 3}, "versions": {"torch": "2.11"}}
    (folder / "run.json").write_text(json.dumps(record | {"command": f"fewstep train digits:{name} --seed 3"} | info))
    with (folder / "log.jsonl").open("w") as file:
        for i in range(1, steps + 1):
            values = (math.exp(-i / 9), 2.0, 1.0 + 1 / i, 0.0)
            file.write(json.dumps({"nimg": 64 * i, "seconds": i * 1.0} | dict(zip(keys, values, strict=True))) + "\n")
    for i in range(6):
        save_png(grid(np.full((4, 8, 8, 1), 40 * i, np.uint8)), folder / f"samples/{64 * i:012d}.png")


def row(model="teacher", nfe: int | None = 9, fd=3.25, **more):
    counts = {"n": 1797, "seeds": "0-1796", "images_per_second": 512.25, "training_images": 102400}
    protocol = {
        "extractor": "pixels",
        "reference": "digits",
        "options": {"sigma_min": 0.1 + 0.2},
        "weights": "ab" * 32,
        "nfe": nfe,
    }
    effort = {"training_seconds": 185, "protocol": protocol}
    return {"model": model, "method": "EDM", "sampler": "heun", "nfe": nfe, "fd_pixels": fd} | counts | effort | more


class Page(HTMLParser):
    """Tags and references of a page, and its text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "xlink:href")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)


def page_of(folder, **options) -> Page:
    return Page(write_report(folder, **options).read_text(encoding="utf-8"))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "teacher")
    write_run(tmp_path / "student", "student", steps=30)
    save_png(grid(np.zeros((4, 8, 8, 1), np.uint8)), tmp_path / "grids/a.png")
    rows = [row(grid="grids/a.png"), row(nfe=17, fd=1.5), row("student", 1, 2.0), row("real images", None, 0.5)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/README.md").write_text("# A card\nLicense: <CC0>")
    return tmp_path


def test_figures_by_noise_level_share_a_chart(tmp_path):
    write_run(tmp_path / "run")
    with (tmp_path / "run/log.jsonl").open("w") as file:
        for i in range(1, 9):
            levels = {"loss/gap@0.1": 1.0 * i, "loss/gap@1": 2.0} | ({"loss/gap@10": 3.0} if i > 4 else {})
            file.write(json.dumps({"nimg": i, "loss": 1.0, "loss/gap": 1.5} | levels) + "\n")
    page = page_of(tmp_path)
    assert page.tags.count("svg") == 3  # the loss, the gap, and the gap over noise
    assert {"to 2 images", "to 4 images", "to 6 images", "to 8 images"} <= set(page.text["text"])


def test_page_shows_all(runs):
    page = page_of(runs, title="Two runs")
    assert page.text["h1"] == ["Two runs"]
    assert page.text["h2"] == ["Results", "Quality", "Samples", "Training", "Model cards", "How to reproduce"]
    assert page.text["h3"] == ["teacher", "student"]
    assert page.text["pre"] == [
        "# A card\nLicense: <CC0>",
        "fewstep train digits:teacher --seed 3\nfewstep train digits:student --seed 3",
    ]
    assert page.tags.count("img") == 1 + 4 + 4
    # FD over NFE, over training and over time; loss, FD, gradient norm of each run. What is zero throughout has no chart.
    assert page.tags.count("svg") == 3 + 3 + 3
    assert "Zero throughout: nonfinite/denoiser." in page.text["p"]
    assert {"after 0 images", "after 320 images", "n 1,797, seeds 0-1796"} <= set(page.text["figcaption"])
    assert {"Pretraining", "6400", "1 min 40 s", "3"} <= set(page.text["b"])


def write_restoration(folder, samples=4, **protocol) -> None:
    about = {
        "task": "box_inpainting",
        "model": NASTY,
        "solver": "pnp_gd",
        "nfe": 48,
        "seed": 3,
        "measurement": "simulated",
    }
    figures = {
        "psnr": {"sample": 18.6925, "mean_of_samples": 20.94, "convention": "range 1"},
        "coverage": {"value": 0.3},
    }
    told = {"protocol": about | protocol, "n": 8, "samples": samples, "metrics": figures}
    save_png(grid(np.zeros((4, 8, 8, 1), np.uint8)), folder / "sheet.png")
    (folder / "metrics.json").write_text(json.dumps(told))


def test_restorations_are_shown_with_their_protocol(tmp_path):
    write_restoration(tmp_path / "restored/a")
    write_restoration(tmp_path / "restored/b", samples=1, measurement="given")
    (tmp_path / "restored/b/other").mkdir()
    save_png(grid(np.zeros((8, 8, 1), np.uint8)), tmp_path / "restored/b/other/sheet.png")
    page = page_of(tmp_path)
    assert page.text["h2"] == ["Restorations"] and page.tags.count("img") == 2
    assert page.text["b"] == ["Box inpainting"] * 2
    told = page.text["figcaption"]
    assert "PSNR 18.69 of sample, PSNR 20.94 of mean of samples" in told and "PSNR 18.69 of sample" in told
    assert "from left to right: truth, measurement, 4 samples, mean, deviation" in told
    assert "from left to right: measurement, 1 sample" in told
    assert page.text["summary"] == ["Protocol"] * 2 and "box_inpainting" in page.text["td"]
    (tmp_path / "restored/a/metrics.json").write_text('{"protocol": 3}')
    with pytest.raises(ValueError, match="must hold a protocol"):
        write_report(tmp_path)


def test_numbers_never_stand_alone(runs):
    page = page_of(runs)
    cells = page.text["td"]
    start = cells.index("teacher")
    assert cells[start : start + 10] == [
        *("teacher", "EDM", "heun", "9", "3.250", "1,797", "0-1796", "512.2", "102.4k", "3 min 5 s"),
    ]
    assert "Protocol" in page.text["summary"]
    after, told = page.text["th"].index("extractor"), cells.index("pixels")
    assert page.text["th"][after : after + 4] == ["extractor", "reference", "options.sigma_min", "weights"]
    assert cells[told : told + 4] == ["pixels", "digits", "0.3", "ab" * 8]


def test_protocols_that_differ_are_lettered(tmp_path):
    other = row()["protocol"] | {"reference": "test digits"}
    (tmp_path / "results.json").write_text(
        json.dumps([row(), row("student", 9, protocol=other), row(repeats="mean of 3")])
    )
    page = page_of(tmp_path)
    assert page.text["th"][-6:] == ["extractor", "options.sigma_min", "weights", "A", "B", "C"]
    assert page.text["td"][-3:] == ["reference digits", "reference test digits", "repeats mean of 3, reference digits"]
    assert [page.text["td"][i] for i in (10, 21, 32)] == ["A", "B", "C"]


def test_figures_of_eval_are_rows(tmp_path):
    """Figures of one protocol share a row; repeated ones have each their own; files of others are left alone."""
    shared = {"model": "student", "nfe": 1, "sampler": "multistep", "extractor": "inception"}
    figures = [("fid", 2.5, "0-49"), ("kid", 0.25, "0-49"), ("fid", 2.75, "50-99"), ("kid", 0.125, "50-99")]
    write_run(tmp_path / "runs/sid", "student")
    file = tmp_path / "runs/sid/fid.json"
    write_results(file, [MetricResult(m, v, 50, shared | {"seeds": s}) for m, v, s in figures])
    twice = [{"metric": "psnr", "value": value, "n": 8, "protocol": {}} for value in (31.5, 32.5)]
    (tmp_path / "z.json").write_text(json.dumps(twice))
    (tmp_path / "other.json").write_text("[1, 2")
    page = page_of(tmp_path)
    assert page.text["th"][:7] == ["model", "sampler", "NFE", "FID", "KID", "PSNR", "n"]
    model = ["sid: student", "multistep", "1"]
    rows = [[*model, "2.500", "0.2500", "50", "0-49", "A"], [*model, "2.750", "0.1250", "50", "50-99", "A"]]
    psnr = ["31.50", "8", "B", "32.50", "8", "B"]  # empty cells have no text
    assert page.text["td"][:22] == [*rows[0], *rows[1], *psnr]
    file.write_text('[{"metric": "fid", "value": "2.5"}]')
    with pytest.raises(ValueError, match=r"fid\.json: expected results as fewstep eval writes them"):
        write_report(tmp_path)


def test_a_model_keeps_its_colour_over_charts(tmp_path):
    rows = [row(), row("SiDA", 1), row("student", 1), row("real images", None)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    for name in ("student", "sida"):
        write_run(tmp_path / name, name)
    charts = re.findall("<svg.*?</svg>", write_report(tmp_path).read_text(), re.DOTALL)
    slots = [
        re.findall(r'class="line" style="--c:var\(--s(\d)\)" stroke-dasharray="none" d="M1 0H19"', c)
        for c in charts[:2]
    ]
    assert slots == [["0", "1", "2"], ["1", "2"]]


def charts_of(folder) -> dict[str, ET.Element]:
    """The charts of a page by their titles."""
    found = re.findall("<svg.*?</svg>", write_report(folder).read_text(), re.DOTALL)
    return {svg.get("aria-label", ""): svg for svg in map(ET.fromstring, found)}


def test_quality_has_a_series_for_each_way_and_a_line_for_real_images(tmp_path):
    rows = [row(nfe=9), row(nfe=17), row(nfe=9, sampler="euler"), row("student", 1), row("real images", None, 0.5)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    (svg,) = charts_of(tmp_path).values()
    names = ["".join(t.itertext()) for t in svg.iter(f"{SVG}text") if t.get("class") == "name"]
    assert sorted(names) == ["student", "teacher, euler", "teacher, heun"]
    assert "real images" in texts(svg) and any(p.get("class") == "reference" for p in svg.iter(f"{SVG}path"))


def test_details_have_charts_of_their_own_and_namespaces_share_one(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"started": "2026-03-01T09:05:00+00:00"}))
    keys = ("generator_loss", "generator_loss/gap", "grad_norm/generator", "grad_norm/fake_score", "lr/generator")
    lines = [{"nimg": i} | dict.fromkeys(keys, 1e4 ** (i / 100)) for i in range(100)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    charts = charts_of(tmp_path)
    assert list(charts) == ["Generator loss", "Generator loss: gap", "Gradient norm", "Learning rate: generator"]
    assert {"generator", "fake score"} <= set(texts(charts["Gradient norm"]))
    assert [t for t in texts(charts["Generator loss"]) if t in ("1", "10", "100", "1000")] == ["1", "10", "100", "1000"]
    clouds = {t: any(p.get("class") == "cloud" for p in svg.iter(f"{SVG}path")) for t, svg in charts.items()}
    assert clouds == dict.fromkeys(charts, True) | {"Learning rate: generator": False}
    assert not any(coordinates(svg, "marker") for svg in charts.values())
    assert "1 March 2026, 09:05 UTC" in page_of(tmp_path).text["b"]


def test_page_is_self_contained(runs):
    text = write_report(runs).read_text()
    page = Page(text)
    assert page.references and all(r.startswith("data:image/png;base64,") for r in page.references)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:(?!//www\.w3\.org/2000/svg)", text)
    assert not re.search(r"[^\n\x20-\x7e]", text) and page.open == []


def test_page_escapes_what_it_is_told(tmp_path):
    write_run(tmp_path / "run", NASTY, command=NASTY, machine={NASTY: NASTY}, started=NASTY)
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write(json.dumps({"nimg": 10**6, NASTY: 1.0, f"{NASTY}/a": 2.0}) + "\n")
    save_png(grid(np.zeros((8, 8, 3), np.uint8)), tmp_path / "grid.png")
    told = {"sampler": NASTY, "seeds": [NASTY], NASTY: 1.5, "grid": "grid.png", "protocol": {NASTY: NASTY}}
    (tmp_path / "results.json").write_text(json.dumps([row(NASTY) | told]))
    page = page_of(tmp_path, title=NASTY)
    assert "script" not in page.tags and page.open == []
    assert page.text["h1"] == ["<script>alert('\"&')</script>\\x00\\x1b\\ud800"]


def test_page_of_a_single_run(tmp_path):
    write_run(tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert page.text["h1"] == ["run"] and page.text["h2"] == ["Training", "How to reproduce"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("gdd", "sid", "student"):
        write_run(tmp_path / folder)
        (tmp_path / folder / "run.json").write_text('{"name": "student"}')
    assert page_of(tmp_path).text["h3"] == ["gdd: student", "sid: student", "student"]


def test_page_notes_what_a_log_lost(tmp_path):
    write_run(tmp_path / "run")
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"nimg": 6400, "denoi')
    assert "1 unreadable line of log.jsonl skipped." in page_of(tmp_path).text["p"]


def test_page_of_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert page_of(tmp_path).text["h3"] == [tmp_path.name]


def test_report_again_replaces_the_page(runs):
    assert write_report(runs) == write_report(runs) == runs.resolve() / "report.html"


def test_large_images_are_reduced(tmp_path):
    save_png(Image.new("RGB", (3000, 1500)), tmp_path / "g.png")
    (tmp_path / "results.json").write_text(json.dumps([row(grid="g.png")]))
    (address,) = page_of(tmp_path).references
    assert Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size == (1400, 700)


@pytest.mark.parametrize("text", ['[{"model": ', "{}", "[1]", '[{"protocol": 1}]', "\ud800"])
def test_unreadable_results_are_named(tmp_path, text):
    (tmp_path / "results.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "results.json"))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_grid_stays_in_its_folder(tmp_path):
    save_png(Image.new("L", (8, 8)), tmp_path / "secret.png")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/results.json").write_text(json.dumps([row(grid="../secret.png")]))
    with pytest.raises(ValueError, match="a grid lies within the folder"):
        write_report(tmp_path / "runs")


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "g.png").write_bytes(b"no image")
    (tmp_path / "results.json").write_text(json.dumps([row(grid="g.png")]))
    with pytest.raises(ValueError, match=r"g\.png cannot be read as an image"):
        write_report(tmp_path)


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="neither results nor runs"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        write_report(tmp_path / "none")
