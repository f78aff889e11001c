# SPDX-License-Identifier: Apache-2.0
"""`blipstream calibrate`: what is fitted, what is refused, what is stored and when that is dropped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from blipstream.calibration import Calibration
from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError, InvalidInput
from blipstream_build.build import build
from blipstream_build.configs import CONFIGS
from blipstream_calibrate.chart import picture
from blipstream_calibrate.command import main
from blipstream_calibrate.figures import auc, figures
from blipstream_calibrate.fit import (
    FOLDS,
    Floats,
    HeldOut,
    Labels,
    cross_validated,
    fit,
    fit_temperature,
    fit_threshold,
    logistic,
)
from blipstream_calibrate.logits import Scorer
from blipstream_calibrate.pairs import Pair, read_pairs
from tests.conftest import SAMPLES
from tests.support.retrieval import RetrievalReference, save_retrieval_checkpoint
from tests.support.terminal import sentence

FIGURES = ["log", "calibration", "precision", "recall", "AUC"]  # as they are printed
LABELLED = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def drawn(temperature: float, count: int = 20_000) -> tuple[Floats, Labels]:
    """Logits, and labels as likely as logit / temperature says."""
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 4, count)
    return logits, generator.random(count) < logistic(logits / temperature)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[Floats, Labels]:
    return np.array([logit for logit, _ in pairs], np.float64), np.array([label for _, label in pairs])


def judged(logits: Floats, labels: Labels) -> HeldOut:
    """By fits that have not seen them. No pair is there twice."""
    return cross_validated(logits, labels, range(len(labels)))


@pytest.mark.parametrize("temperature", [0.3, 1, 2.5])
def test_the_temperature_is_found_again(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("weakest", [6, -0.05])
def test_pairs_that_are_told_apart_leave_doubt(weakest: float) -> None:
    """Alone, their likelihood would be highest at 0, or next to it where one pair is just on the wrong side."""
    logits, labels = np.repeat([6.0, -6.0], 30), np.repeat([True, False], 30)
    logits[0] = weakest
    found = fit(logits, labels)
    assert 0.5 < found.temperature < 1
    assert (logistic(logits / found.temperature) >= found.threshold).tolist() == labels.tolist()


def test_the_calibration_error_falls_and_the_order_stays() -> None:
    logits, labels = drawn(3)
    before, after = figures(logits, logits >= 0, labels), figures(*judged(logits, labels), labels)
    assert before.calibration_error > 0.1
    assert after.calibration_error < 0.02
    assert after.log_loss < before.log_loss
    assert after.auc == pytest.approx(before.auc, abs=1e-3)


def test_a_fold_is_judged_by_the_others() -> None:
    """Where labels are noise, the best threshold for all accepts more right ones than one that has not seen them."""
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 1, 40), generator.random(40) < 0.5
    found, held_out = fit(logits, labels), judged(logits, labels)
    seen = logistic(logits / found.temperature) >= found.threshold
    assert (seen == labels).sum() > (held_out.accepted == labels).sum()


def test_pairs_that_repeat_are_in_one_fold() -> None:
    """Four times each, they are judged alike, which four folds would not do."""
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 1, 40), generator.random(40) < 0.5
    found = cross_validated(np.tile(logits, 4), np.tile(labels, 4), [*range(40)] * 4)
    assert [len({*copies}) for copies in found.logits.reshape(4, 40).T] == [1] * 40
    assert len({*(found.logits / np.tile(logits, 4)).round(9)}) == FOLDS


@given(LABELLED)
def test_the_drawn_precision_is_that_of_every_threshold(pairs: list[tuple[int, bool]]) -> None:
    logits, labels = arrays(pairs)
    found = fit(logits, labels)
    match = logistic(logits / found.temperature)
    figure = picture(logits, logits, labels, found)
    try:
        precision, recall = figure.axes[1].lines[:2]
        for threshold in (found.threshold, *match, *np.linspace(0, match.max(), 20)):
            accepted = match >= threshold
            for line, expected in (
                (precision, labels[accepted].mean()),
                (recall, (labels & accepted).sum() / labels.sum()),
            ):
                assert line.get_drawstyle() == "steps-pre"  # up to a point, its value
                at, share = np.asarray(line.get_data())
                assert share[np.searchsorted(at, threshold)] == pytest.approx(expected)
    finally:
        plt.close(figure)


@given(LABELLED)
def test_no_threshold_has_more_f1(pairs: list[tuple[int, bool]]) -> None:
    logits, labels = arrays(pairs)
    match = logistic(logits)

    def f1(threshold: float) -> float:
        accepted = match >= threshold
        return float(2 * (accepted & labels).sum() / (accepted.sum() + labels.sum()))

    assert f1(fit_threshold(match, labels)) == pytest.approx(max(f1(each) for each in (0, *match)))


@given(LABELLED)
def test_auc_counts_pairs_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    logits, labels = arrays(pairs)
    won = [(a > b) + (a == b) / 2 for a in logits[labels] for b in logits[~labels]]
    assert auc(logits, labels) == pytest.approx(sum(won) / len(won))


def test_figures() -> None:
    labels = np.array([True, True, True, False, False])
    found = figures(np.log([3, 3, 1 / 3, 1 / 3, 3]), np.array([True, True, False, False, True]), labels)
    assert (found.precision, found.recall) == pytest.approx((2 / 3, 2 / 3))
    assert found.log_loss == pytest.approx(-np.log([0.75, 0.75, 0.25, 0.75, 0.25]).mean())
    assert found.calibration_error == pytest.approx(3 / 5 * (0.75 - 2 / 3) + 2 / 5 * (1 / 2 - 0.25))


# the file of pairs


def write(folder: Path, samples: dict[str, str], *lines: str) -> Path:
    """Each sample with each caption, and further lines."""
    shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
    rows = [f"{image},{text},{int(image == other)}" for image in samples for other, text in samples.items()]
    file = folder / "pairs.csv"
    file.write_text("\n".join(["image,text,label", *rows, *lines]), encoding="utf-8")
    return file


def test_pairs(tmp_path: Path, samples: dict[str, str]) -> None:
    pairs = read_pairs(write(tmp_path, samples, 'a-book.jpg,"a book, red", 0', ""))
    assert sum(pair.label for pair in pairs) == len(samples)
    assert pairs[-1] == Pair(f"{tmp_path}/pairs.csv, line 66", tmp_path / "a-book.jpg", "a book, red", False)
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"image": p.image.name, "text": p.text, "label": p.label * 1}) for p in pairs))
    assert [pair[1:] for pair in read_pairs(file)] == [pair[1:] for pair in pairs]


def test_labels_and_columns_as_other_programs_write_them(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    file, expected = tmp_path / "a.csv", [True, True, True, False, False, False] * 4
    file.write_text(
        " Image,TEXT,Label\n" + "x.jpg,a,1\nx.jpg,a,1.0\nx.jpg,a,True\nx.jpg,a,0\nx.jpg,a,0.0\nx.jpg,a,false\n" * 4
    )
    assert [pair.label for pair in read_pairs(file)] == expected
    file = tmp_path / "a.jsonl"
    labels = (1, 1.0, True, 0, 0.0, False) * 4
    file.write_text("\n".join(json.dumps({"image": "x.jpg", "text": "a", "label": label}) for label in labels))
    assert [pair.label for pair in read_pairs(file)] == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "image,text\n", "must have the columns image, text, label in its first line, and has no label"),
        ("a.csv", "", "has no image: it has nothing"),
        ("a.csv", "image,text,label\nx.jpg,a,yes\n", "line 2 has the label 'yes': write 1 if image and text belong"),
        ("a.csv", "image,text,label\nx.jpg,a\n", "line 2 has no label: write 1 if image and text belong"),
        ("a.csv", "image,text,label\nx.jpg,a,\n", "line 2 has no label"),
        (
            "a.csv",
            "image,text,label\nx.jpg,a book, red,1\n",
            "line 2 has more values than there are columns: put a text",
        ),
        ("a.csv", "image;text;label\n", "has semicolons between its columns: save it with commas"),
        ("a.csv", "image\ttext\tlabel\n", "has tabs between its columns: save it with commas"),
        (
            "a.csv",
            "image,text,label\nhttp://a/b.jpg,a,1\n",
            "line 2: http://a/b.jpg is a URL, and URLs are not fetched",
        ),
        ("a.csv", "image,text,label\n..,a,1\n", "/.. is no file: give the path of an image"),
        ("a.csv", "image,text,label\nx.jpg,,1\n", "line 2 must have an image and a text, and one is missing"),
        ("a.csv", "image,text,label\ny.jpg,a,1\n", "line 2: there is no image"),
        ("a.csv", "image,text,label\n" + "x.jpg,a,1\n" * 30, "has 30 pairs with label 1 and 0 with label 0"),
        ("a.csv", "image,text,label\n" + "x.jpg,a,1\nx.jpg,b,0\n" * 9, "label at least 20, and 5 of each"),
        ("a.csv", b"image,text,label\nx.jpg,caf\xe9,1\n", "must be UTF-8, and is not"),
        ("a.jsonl", "{}", "line 1 must be an object with image, text, label"),
        ("a.jsonl", "\n[\n", "line 2 is not JSON: Expecting value"),
        ("a.jsonl", '{"image": "x.jpg", "text": 5, "label": 1}', "line 1 must have a string as its text, not 5"),
        ("a.jsonl", '{"image": "x.jpg", "text": "a", "label": null}', "line 1 has no label"),
        ("b.csv", None, "cannot be read: No such file or directory"),
    ],
)
def test_files_that_are_refused(name: str, content: str | bytes | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput) as refusal:
        read_pairs(tmp_path / name)
    assert said in str(refusal.value)


# the command


@pytest.fixture
def repository(matching_artifacts: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(matching_artifacts, tmp_path / "models")


@pytest.fixture
def file(tmp_path: Path, samples: dict[str, str]) -> Path:
    return write(tmp_path / "pairs", samples)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def labelled(file: Path, repository: Path, quarters: list[int]) -> Path:
    """The same pairs, whose label is that of the quarter in which their logit lies."""
    pairs = read_pairs(file)
    scorer = Scorer(repository / "matcher/1/openvino", repository, CONFIGS["cpu"])
    ranks = scorer.logits(pairs, truncate=False, advance=lambda _: None).argsort().argsort()
    rows = [f"{p.image.name},{p.text},{quarters[4 * rank // len(pairs)]}" for p, rank in zip(pairs, ranks, strict=True)]
    file.write_text("\n".join(["image,text,label", *rows]), encoding="utf-8")
    return file


def test_logits_are_those_of_the_checkpoint(
    matching_artifacts: Path, file: Path, retrieval_reference: RetrievalReference
) -> None:
    pairs = read_pairs(file)
    read: list[int] = []
    scorer = Scorer(matching_artifacts / "matcher/1/openvino", matching_artifacts, CONFIGS["cpu"])
    logits = scorer.logits(pairs, truncate=False, advance=read.append)
    assert sum(read) == 8
    for pair, logit in list(zip(pairs, logits, strict=True))[::7]:
        expected = retrieval_reference.score(Image.open(pair.image), [pair.text]).logit
        np.testing.assert_allclose(logit, expected.numpy(), atol=1e-3)


def test_a_rebuild_keeps_it_and_another_checkpoint_drops_it(
    repository: Path, file: Path, tmp_path: Path, retrieval_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve, stored = tmp_path / "curve.png", repository / "matcher/1/calibration.json"
    done = run(labelled(file, repository, [0, 0, 1, 1]), "--repository", repository, "--curve", curve)
    assert done.exit_code == 0, done.output
    assert f"stored: {stored}\na running server takes it at its next start\n" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[3:8]] == FIGURES
    with Image.open(curve) as picture:
        assert picture.format == "PNG"
    calibration = Calibration.of(repository / "matcher/1/openvino")
    assert calibration is not None
    assert f"temperature {calibration.temperature:.3f}, threshold {calibration.threshold:.3f}" in done.stdout

    build(str(retrieval_checkpoint), "f32", repository, force=True)
    assert Calibration.of(repository / "matcher/1/openvino") == calibration
    capsys.readouterr()
    build(str(save_retrieval_checkpoint(tmp_path / "other", seed=2)), "f32", repository)
    assert f"its calibration was of {calibration.origin}: it is dropped" in capsys.readouterr().out
    assert not stored.exists()


@pytest.mark.parametrize(
    ("right", "said"),
    [([1, 1, 0, 0], "the wrong way round: are they reversed?"), ([1, 0, 0, 1], "hardly tells these labels apart")],
    ids=["reversed", "meaningless"],
)
def test_wrong_labels_leave_what_is_stored(right: list[int], said: str, repository: Path, file: Path) -> None:
    artifact = repository / "matcher/1/openvino"
    config = CheckpointConfig.load(artifact)
    stored = Calibration(config.origin, config.revision, 2.0, 0.5)
    stored.save(artifact.parent)
    refused = run(labelled(file, repository, right), "--repository", repository)
    assert refused.exit_code == 1
    assert said in sentence(refused.stderr[refused.stderr.index("Error:") :])
    assert Calibration.of(artifact) == stored


def test_remove(repository: Path) -> None:
    artifact = repository / "matcher/1/openvino"
    config = CheckpointConfig.load(artifact)
    Calibration(config.origin, config.revision, 2.0, 0.5).save(artifact.parent)
    assert run("--remove", "--repository", repository).exit_code == 0
    assert Calibration.of(artifact) is None
    assert "has no calibration to remove" in sentence(run("--remove", "--repository", repository).stderr)


def test_one_of_another_checkpoint_is_not_used(repository: Path) -> None:
    artifact = repository / "matcher/1/openvino"
    Calibration("x@1", "1", 2.0, 0.5).save(artifact.parent)
    with pytest.raises(ArtifactError, match=r"is of x@1, and the matcher beside it of .*: run `blipstream calibrate`"):
        Calibration.of(artifact)
    (artifact.parent / "calibration.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not one that `blipstream calibrate` writes"):
        Calibration.of(artifact)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("captions.json,a cat,0", "line 66: "),
        (f"a-book.jpg,{'a ' * 100},0", "line 66: text must have at most 62 tokens, not 100: shorten it, or give --t"),
        ("a-book.jpg,  ,0", "line 66: text is empty"),
    ],
    ids=["no image", "too long", "blank"],
)
def test_pairs_that_are_refused(
    line: str, said: str, matching_artifacts: Path, tmp_path: Path, samples: dict[str, str]
) -> None:
    refused = run(write(tmp_path, samples, line), "--repository", matching_artifacts)
    assert refused.exit_code == 1
    assert said in sentence(refused.stderr[refused.stderr.index("Error:") :])


def test_commands_that_are_refused(file: Path, tmp_path: Path, f32_artifacts: Path) -> None:
    assert "give PAIRS to calibrate, or --remove" in run("--repository", tmp_path).stderr
    assert "give PAIRS to calibrate, or --remove" in run(file, "--remove", "--repository", tmp_path).stderr
    assert "and not both" in run(file, "--remove", "--repository", tmp_path).stderr
    assert "must end in .png" in run(file, "--curve", tmp_path / "c.jpg", "--repository", tmp_path).stderr
    assert not (tmp_path / "c.jpg").exists()
    assert "has no matcher for --config cpu: build one" in sentence(run(file, "--repository", f32_artifacts).stderr)
