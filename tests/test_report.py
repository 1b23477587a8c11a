"""The report: one HTML page about runs of any state, complete in itself."""

import base64
import io
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from bpgo import monitor
from bpgo.__main__ import main
from bpgo.config import read_config, to_dict
from bpgo.evaluation import Scores
from bpgo.logs import append_row, evaluation_row
from bpgo.report import write_report
from bpgo.report.charts import Series, band, line_chart, thinned
from bpgo.report.folders import is_default, label_groups, read_folder
from bpgo.report.strips import read_strips
from bpgo.settings import flatten
from tests.reproduce.browser import CHROMIUM, DESKTOP, PHONE, Browser

VOID = {"meta", "link", "img", "br"}
PROMPTS = ["a red circle", "<b>anything</b> & more"]


class Page(HTMLParser):
    """text: what a reader sees. addresses: what the page loads or links to. images: (alt, src)."""

    def __init__(self, text):
        super().__init__()
        self.text, self.addresses, self.images, self.ids, self.open = "", [], [], [], []
        self.labels = []
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [v for k, v in attributes if k in ("href", "src", "srcset", "xlink:href")]
        self.ids += [found["id"]] if "id" in found else []
        self.labels += [found["aria-label"]] if found.get("role") == "img" else []
        if tag == "img":
            self.images.append((found["alt"], found["src"]))
        assert tag != "script"
        if tag in ("td", "th", "tr", "li", "p", "div", "span", "br"):
            self.text += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page_of(runs, file):
    """The parsed report of these runs."""
    text = write_report(runs, file).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []  # every element is closed
    assert len(page.ids) == len(set(page.ids))
    assert all(a.startswith(("#", "data:")) for a in page.addresses), page.addresses
    assert not re.search(r"url\(\s*[\"']?(?!#)|@import", text)
    return page


def make_run(folder, *overrides, iterations=6, every=3, pictures=True):
    """A run's folder as training leaves it, with made-up numbers. Returns it."""
    config = read_config("t2i-tiny", [f"iterations={iterations}", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    generator = torch.Generator().manual_seed(config.seed)
    for i in range(iterations + 1):
        if i % every == 0:
            rewards = torch.rand(len(PROMPTS), 2, generator=generator)
            scores = {"reward": rewards, "held_out": rewards / 2}
            append_row(folder, "evaluations", evaluation_row(i, Scores(None, scores)))
            if pictures:
                pixels = torch.full((2, 2, 3, 32, 32), i / iterations)
                rows = rewards.tolist()
                monitor.save(folder / "samples", i, pixels, PROMPTS, rows)
        if i:
            row = {"iteration": i, "reward": i / 10 + config.seed, "k": 2.0, "prior": 0.4}
            append_row(folder, "metrics", row)
            timing = {"iteration": i, "seconds": 2.0, "sample": 1.5, "update": 0.5}
            append_row(folder, "timing", timing)
    for i in (iterations - 1, iterations):
        (folder / f"checkpoint-{i:06d}").mkdir()
    (folder / "final").mkdir()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A complete run. Copy it before you change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_the_command_writes_the_report_and_names_it(run, tmp_path, capsys):
    file = tmp_path / "deep" / "report.html"
    assert main(["report", str(run), "-o", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_report_of_a_run_has_every_part(run, tmp_path):
    append_row(run, "warnings", {"iteration": 5, "guard": "stagnation", "warning": "all < 1"})
    page = page_of([run], tmp_path / "report.html")
    (run / "warnings.jsonl").unlink()
    assert "6 of 6" in page.text and "complete" in page.text
    assert "first, iteration 5, stagnation: all < 1" in page.text
    shown = [re.split(r"[.:]", label)[0] for label in page.labels]
    assert {"Reward", "Held-out reward", "Training reward", "Sharpness k"} <= set(shown)
    assert {"Prior", "Weight against level", "Weight against spread"} <= set(shown)
    assert "Training reward. bpgo: 0.1 at iteration 1, 0.6 at iteration 6." in page.labels
    assert "sampling 75%" in page.text and "updates 25%" in page.text
    samples = 8 * 12 * 6  # groups, samples of each, iterations
    assert f"{samples * 8:,} in rollouts" in page.text
    assert f"{samples * 4:,} in updates" in page.text  # 0.6 of the 7 noisy steps
    assert f"{3 * 4 * 8} in evaluations" in page.text
    assert "checkpoints after 5, 6 iterations" in page.text
    assert f"bpgo export {run} --at 6" in page.text
    assert "bpgo train" not in page.text  # there is nothing to resume
    assert "could not be read" not in page.text


def test_settings_that_are_not_the_default_come_first(run, tmp_path):
    page = page_of([run], tmp_path / "report.html")
    _, _, settings = page.text.partition("settings that are not the default")
    changed, _, default = settings.partition("settings with their default")
    assert "generator.path tiny-flux" in changed and "sampling.steps 8" in changed
    assert "prior.momentum 0.9" in default and "generator.path" not in default


def test_pictures_show_one_prompt_over_the_iterations(run, tmp_path):
    page = page_of([run], tmp_path / "report.html")
    assert len(page.images) == 6  # two prompts at iterations 0, 3 and 6
    for (alt, source), (prompt, i) in zip(
        page.images, [(p, i) for p in PROMPTS for i in (0, 3, 6)], strict=True
    ):
        assert prompt in alt and f"iteration {i}" in alt
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert image.size == (128, 128)
        colours = np.unique(np.asarray(image.convert("RGB")))
        assert colours.tolist() == [round(255 * i / 6)]


def test_moving_pictures_keep_their_frames(tmp_path):
    pixels = torch.linspace(0, 1, 5).view(1, 1, 5, 1, 1, 1).expand(2, 1, 5, 3, 16, 16).clone()
    pixels[1] = 1 - pixels[1]
    monitor.save(tmp_path, 0, pixels, ["up", "down"], [[0.1], [float("nan")]])
    problems = []
    strips = read_strips(tmp_path, problems)
    assert problems == []
    assert [strips[name][0].reward for name in ("up", "down")] == ["0.1", ""]
    for name, expected in (("up", pixels[0]), ("down", pixels[1])):
        image = Image.open(io.BytesIO(base64.b64decode(strips[name][0].image.partition(",")[2])))
        assert image.n_frames == 5
        for i in range(5):
            image.seek(i)
            value = np.asarray(image.convert("RGB")).mean()
            assert value == pytest.approx(255 * expected[0, i].mean().item(), abs=2)


def test_at_most_six_iterations_are_shown_with_the_first_and_the_last(tmp_path):
    for i in range(0, 1000, 50):
        monitor.save(tmp_path, i, torch.zeros(1, 1, 3, 8, 8), ["a"], [[0.0]])
    shown = [cell.iteration for cell in read_strips(tmp_path, [])["a"]]
    assert len(shown) == 6 and shown[0] == 0 and shown[-1] == 950
    assert shown == sorted(shown)


# ------------------------------------------------------------------------------------ several runs


def test_runs_that_differ_only_in_their_seed_are_averaged(tmp_path):
    objectives = ("bpgo", "grpo")
    runs = [
        make_run(tmp_path / f"{o}{s}", f"objective.name={o}", f"seed={s}", "tracker=tensorboard")
        for o in objectives
        for s in (0, 1, 2)
    ]
    groups = label_groups([read_folder(run) for run in runs])
    assert {label: len(members) for label, members in groups.items()} == {"bpgo": 3, "grpo": 3}
    page = page_of(runs, tmp_path / "report.html")
    assert "6 runs" in page.text
    words = "bpgo: 1.1 at iteration 1, 1.6 at iteration 6, mean of 3 runs. grpo: 1.1"
    assert any(words in label for label in page.labels)
    assert "objective.name bpgo grpo" in page.text


def test_the_band_is_the_t_interval_over_runs():
    values = np.random.default_rng(0).normal(size=(4, 5))
    curves = [(np.arange(5 + i), np.append(row, [9.0] * i)) for i, row in enumerate(values)]
    steps, mean, half = band(curves)
    assert steps.tolist() == [0, 1, 2, 3, 4]  # those that all runs have
    expected = stats.t.interval(0.95, 3, values.mean(0), stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], expected)


@pytest.mark.parametrize(("runs", "bands"), [(1, 0), (2, 0), (3, 1)])
def test_three_runs_get_a_band(runs, bands):
    x = np.arange(4)
    svg = line_chart("Title", [Series("a", 0, [(x, x * (1 + i)) for i in range(runs)])])
    assert svg.count('FillBetweenPolyCollection_1"') == bands


def test_long_curves_are_averaged_over_windows():
    x, y = np.arange(1, 6001), np.arange(1, 6001) % 20 + 0.0
    steps, means = thinned(x, y)
    assert len(steps) <= 600
    np.testing.assert_allclose(means, 9.5)
    assert thinned(x[:100], y[:100])[1] is not None and len(thinned(x[:100], y[:100])[0]) == 100


def test_groups_are_told_by_what_differs(tmp_path):
    def labels(*settings):
        runs = []
        for given in settings:
            runs.append(make_run(tmp_path / f"{len(list(tmp_path.iterdir()))}", *given, every=6))
        return list(label_groups([read_folder(run) for run in runs]))

    assert labels(["objective.alpha=0.1"], ["objective.alpha=0.9"]) == ["0.1", "0.9"]
    two = labels(["objective.name=ras", "groups=4"], ["objective.name=grpo", "groups=6"])
    assert two == ["groups 4, name ras", "groups 6, name grpo"]
    three = ["objective.name=ras", "groups=6", "group_size=6", "seed=1"]
    assert labels([], three, three) == ["4", "5"]  # the names of their folders


def test_a_run_without_settings_that_were_added_later_is_in_the_group_of_their_defaults(copy, run):
    config = json.loads((copy / "config.json").read_text())
    del config["prior"]["momentum"], config["reward"][0]["scale"], config["precision"]
    config["seed"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    assert len(label_groups([read_folder(copy), read_folder(run)])) == 1


def test_twenty_runs_fit(run, tmp_path):
    runs = []
    for i in range(20):
        runs.append(shutil.copytree(run, tmp_path / f"run{i}"))
        config = json.loads((runs[i] / "config.json").read_text())
        config["optimiser"]["learning_rate"] = 1e-5 * (i + 1)
        (runs[i] / "config.json").write_text(json.dumps(config))
    page = page_of(runs, tmp_path / "report.html")
    assert "20 runs" in page.text
    assert "The pictures of 12 more groups" in page.text
    assert (tmp_path / "report.html").stat().st_size < 5e6


def test_a_run_that_is_given_twice_is_shown_once(run, tmp_path):
    page = page_of([run, run / "." / "samples" / ".."], tmp_path / "report.html")
    assert "2 runs" not in page.text


# ------------------------------------------------------------------------------- runs of any state


def test_a_run_in_progress(copy, tmp_path):
    shutil.rmtree(copy / "final")
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 7, "rew')
    owner = {"pid": os.getpid(), "host": os.uname().nodename}
    (copy / ".lock-owner").write_text(json.dumps(owner))
    page = page_of([copy], tmp_path / "report.html")
    assert f"in progress (process {os.getpid()})" in page.text
    assert "The last line of metrics.jsonl is incomplete" in page.text
    command = f"bpgo train {copy / 'config.json'} --output {copy}"
    assert command in page.text


def test_a_killed_run(copy, tmp_path):
    shutil.rmtree(copy / "final")
    (copy / ".lock-owner").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))
    page = page_of([copy], tmp_path / "report.html")
    assert "not complete; last written on" in page.text


def test_settings_of_a_report_can_be_resumed_from(run):
    """The command to resume gives config.json as the preset."""
    assert to_dict(read_config(run / "config.json")) == json.loads(
        (run / "config.json").read_text()
    )


DAMAGES = {
    "garbage in a log": (
        "metrics.jsonl",
        b"\x00\xff garbage\n",
        "metrics.jsonl is damaged in line",
    ),
    "a row that is a list": ("timing.jsonl", b"[1, 2]\n", "timing.jsonl is damaged in line 7"),
    "no iteration": ("evaluations.jsonl", b'{"reward": 1}\n', "evaluations.jsonl is damaged"),
    "an iteration that is text": ("metrics.jsonl", b'{"iteration": "x"}\n', "is damaged in line 7"),
    "rows twice": ("metrics.jsonl", b'{"iteration": 6, "reward": 2}\n', "rows for 1 iterations"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_are_named_and_the_rest_is_shown(copy, tmp_path, damage):
    name, line, message = DAMAGES[damage]
    with (copy / name).open("ab") as stream:
        stream.write(line)
    page = page_of([copy], tmp_path / "report.html")
    assert message in page.text
    assert any(label.startswith("Training reward. bpgo: 0.1 at") for label in page.labels)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00"])
def test_a_damaged_config_is_named_and_the_rest_is_shown(copy, tmp_path, text):
    (copy / "config.json").write_text(text)
    page = page_of([copy], tmp_path / "report.html")
    assert "config.json" in page.text and "could not be read" in page.text
    assert any(label.startswith("Training reward.") for label in page.labels)


def test_values_that_are_no_numbers_are_left_out(copy, tmp_path):
    lines = ['{"iteration": 7, "reward": NaN, "k": "x", "prior": null, "new": Infinity}']
    lines += ['{"iteration": 8, "reward": true, "k": [], "text": "a"}']
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write("\n".join(lines) + "\n")
    page = page_of([copy], tmp_path / "report.html")
    assert any("0.6 at iteration 6." in label for label in page.labels)
    assert not any(label.startswith(("New", "Text")) for label in page.labels)


@pytest.mark.parametrize("damage", ["empty", "truncated", "other json", "missing"])
def test_damaged_pictures_are_named(copy, tmp_path, damage):
    picture, shown = copy / "samples" / "000003.png", copy / "samples" / "000003.json"
    if damage == "empty":
        picture.write_bytes(b"")
    elif damage == "truncated":
        picture.write_bytes(picture.read_bytes()[:100])
    elif damage == "other json":
        shown.write_text('{"iteration": 3, "gap": 4, "prompts": [], "rewards": []}')
    else:
        picture.unlink()
    page = page_of([copy], tmp_path / "report.html")
    assert "samples/000003 cannot be shown" in page.text
    assert len(page.images) == 4


def test_a_run_that_has_only_begun(tmp_path):
    config = to_dict(read_config("t2i-tiny"))
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    page = page_of([folder], tmp_path / "report.html")
    assert "No iteration is complete yet" in page.text and "0 of 100" in page.text
    assert "no checkpoint" in page.text


def test_a_run_without_evaluations_pictures_or_times(copy, tmp_path):
    for name in ("evaluations", "timing"):
        (copy / f"{name}.jsonl").unlink()
    shutil.rmtree(copy / "samples")
    page = page_of([copy], tmp_path / "report.html")
    assert "not evaluated yet" in page.text
    assert any(label.startswith("Training reward") for label in page.labels)


def test_a_branch_names_the_run_that_it_came_from(copy, tmp_path):
    ancestry = {"parent": "/runs/old", "iteration": 4, "changed": {"groups": 2}}
    (copy / "ancestry.json").write_text(json.dumps(ancestry))
    page = page_of([copy], tmp_path / "report.html")
    assert "branched from /runs/old at iteration 4, with groups=2" in page.text


def test_other_checkpoints_are_not_listed(copy, tmp_path):
    (copy / "checkpoint-000003-best").mkdir()
    assert read_folder(copy).checkpoints == [5, 6]


def test_the_errors_of_a_request_name_the_offender(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not the folder of a run"):
        write_report([run, tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(IsADirectoryError, match="name a file"):
        write_report([run], tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")


# ----------------------------------------------------------------------------------------- weights


def test_weights_are_those_of_equation_2(run, tmp_path, monkeypatch):
    from bpgo import report

    found = report._weights_of_prompts(read_folder(run))
    rewards = np.array(
        json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["scores"]["reward"]
    )
    deviation = 2.0 * (rewards.mean(1) - 0.4)  # k and the prior of the last row
    np.testing.assert_allclose(found["weight"], 1 + 0.5 * np.tanh(deviation / 2), rtol=1e-6)
    np.testing.assert_allclose(found["spread"], rewards.std(1, ddof=1), rtol=1e-6)


def test_without_weights_the_section_is_left_out(tmp_path):
    run = make_run(tmp_path / "grpo", "objective.name=grpo", pictures=False)
    assert "Weights against ambiguity" not in page_of([run], tmp_path / "report.html").text


# ------------------------------------------------------------------------------------------ charts


def test_a_chart_is_valid_svg_with_text_and_the_colours_of_the_page():
    x = np.arange(3)
    series = [Series('a "b" <c> & d', i, [(x, x + i), (x, x * i)]) for i in range(8)]
    root = ElementTree.fromstring(line_chart("Title", series))
    assert root.get("aria-label").startswith('Title. a "b" <c> & d: 0 at iteration 0')
    text = line_chart("Title", series)
    assert "<text" in text and "iteration</text>" in text
    assert "var(--series-5)" in text and "var(--soft)" in text
    assert re.findall(r"#[0-9a-f]{6}\b", text) == []  # no colour that dark mode could not change


def test_lists_of_one_entry_have_no_number():
    tree = {"a": [{"b": 1}], "c": [{"d": 1}, {"d": 2}], "e": [], "f": {"g": None}, "h": {}}
    flat = {"a.b": 1, "c.0.d": 1, "c.1.d": 2, "e": [], "f.g": None, "h": {}}
    assert flatten(tree) == flat
    assert is_default("evaluation.held_out.1.scale", "1.0") and is_default(
        "generator.options", "{}"
    )
    assert not is_default("groups", "9") and not is_default("generator.path", "x")


# --------------------------------------------------------------------------------------- a browser


@pytest.mark.site
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_a_browser_shows_it_without_fault_request_or_overflow(run, tmp_path):
    file = write_report([run], tmp_path / "report.html")
    (tmp_path / "browser").mkdir()
    tab = Browser(tmp_path / "browser")
    requests = []
    hear = tab.hear

    def noted():
        message = hear()
        if message.get("method") == "Network.requestWillBeSent":
            requests.append(message["params"]["request"]["url"])
        return message

    tab.hear = noted
    backgrounds = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        tab.ask("Emulation.setEmulatedMedia", features=[feature])
        for width, height in (PHONE, DESKTOP):
            tab.open(file.as_uri(), width, height)
            page = "document.documentElement"
            assert tab.evaluate(f"{page}.scrollWidth - {page}.clientWidth") <= 0
            broken = "[...document.images].filter(i => !i.naturalWidth).length"
            assert tab.evaluate(broken) == 0
        backgrounds[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.close()
    assert tab.complaints == []
    assert {url for url in requests if not url.startswith("data:")} == {file.as_uri()}
    assert len(set(backgrounds.values())) == 2
