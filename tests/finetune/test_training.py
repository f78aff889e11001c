# SPDX-License-Identifier: Apache-2.0
"""Training: what comes out is what transformers and PEFT load, and a run that was stopped ends as if it never was."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipProcessor, Trainer, TrainingArguments

from blipstream.errors import BlipstreamError
from blipstream_build.adapters import install
from blipstream_build.adapters.base import Base
from blipstream_build.build import build
from blipstream_build.checkpoint import Checkpoint
from blipstream_finetune.examples import IGNORED, Batch, Pair, Texts
from blipstream_finetune.model import Trained
from blipstream_finetune.run import Words, Work, finetune
from blipstream_finetune.settings import FULL, LORA, Settings
from blipstream_finetune.sources import open_source
from blipstream_finetune.training import STATE, Stopped, Training, _replaced, learning_rate
from tests.conftest import CHECKPOINT

SHORT = replace(LORA, batch=8, steps=16, validate_steps=8, metric="exact")
WORDS = Words(new_tokens=120)
OFTEN = Work(save_minutes=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As equality to the bit needs it. Training needs gradients, which other tests go without."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.enable_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images' embeddings, for all runs here."""
    return tmp_path_factory.mktemp("cache")


def run(data: Path, output: Path, settings: Settings, cache: Path, words: Words = WORDS) -> dict[str, float]:
    work = replace(OFTEN, cache=cache)
    source = open_source(str(data), None, None, None)
    return finetune(str(CHECKPOINT), source, output, settings, validation=0.1, words=words, language="ja", work=work)


@pytest.fixture(scope="module")
def adapter(kana: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learnt a little of kana."""
    output = tmp_path_factory.mktemp("adapter") / "kana"
    torch.set_num_threads(1)
    with torch.enable_grad():
        run(kana, output, SHORT, cache)
    return output


def test_an_adapter_builds(adapter: Path, f32_artifacts: Path, tmp_path: Path) -> None:
    """The build compares its captions with PEFT's."""
    repository = shutil.copytree(f32_artifacts, tmp_path / "repository")
    install.add(repository, install.find_adapters([("kana", adapter)]), Base())
    (installed,) = install.installed(repository)
    assert installed.config is not None
    assert (installed.config.language, installed.config.num_words) == ("ja", 120)


def weights_of(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(next(folder.glob("*model.safetensors")))
    return weights


def test_an_adapter_learns(adapter: Path) -> None:
    metrics = json.loads((adapter / "metrics.json").read_text())
    losses = [each["loss"] for _, each in metrics["validations"]]
    assert losses[-1] < losses[0] - 0.1
    assert {"step", "loss", "exact"} <= metrics.keys()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_an_adapter_is_as_peft_takes_it(adapter: Path) -> None:
    names = {each.name for each in adapter.iterdir()}
    assert names >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "blipstream.json",
        "README.md",
    }
    assert (adapter / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [each.name.split(".")[0] for each in (adapter / "training").iterdir()] == ["events"]
    ours = json.loads((adapter / "blipstream.json").read_text())
    checkpoint = Checkpoint.find(str(CHECKPOINT))
    assert (ours["base"], ours["base_revision"], ours["language"]) == (checkpoint.name, checkpoint.revision, "ja")

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = BlipForConditionalGeneration.from_pretrained(CHECKPOINT)
    base = {name: each.clone() for name, each in model.state_dict().items()}
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    for name, weight in adapted.state_dict().items():
        if name.startswith("vision_model.") or "LayerNorm" in name or "position" in name:
            assert torch.equal(weight, base[name]), name
    rows = adapted.get_input_embeddings().weight
    assert torch.equal(rows[:478], base["text_decoder.bert.embeddings.word_embeddings.weight"])
    assert len(rows[478:].unique(dim=0)) == len(tokenizer) - 478


def test_a_run_that_was_killed_twice_ends_with_the_same_weights(
    adapter: Path, kana: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    deaths = [5, 13]  # before the first validation, and between two
    step = Training._step

    def killed(self: Training, batch: Batch) -> float:
        if self.progress.step in deaths:
            deaths.remove(self.progress.step)
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(Training, "_step", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            run(kana, tmp_path / "out", SHORT, cache)
    run(kana, tmp_path / "out", SHORT, cache)

    expected = weights_of(adapter)
    for name, weight in weights_of(tmp_path / "out").items():
        assert torch.equal(weight, expected[name]), name
    assert (tmp_path / "out/metrics.json").read_bytes() == (adapter / "metrics.json").read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step(
    number: signal.Signals, status: int, kana: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training._step

    def interrupted(self: Training, batch: Batch) -> float:
        if self.progress.step == 1:
            signal.raise_signal(number)
        return step(self, batch)

    monkeypatch.setattr(Training, "_step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 2: the same command goes on") as error:
        run(kana, tmp_path / "out", SHORT, cache)
    assert error.value.status == status
    assert signal.getsignal(number) == before

    with pytest.raises(BlipstreamError, match=r"has a run with batch 8, not 4; .*steps 16, not 3"):
        run(kana, tmp_path / "out", replace(SHORT, batch=4, steps=3), cache)


@pytest.mark.parametrize(
    "save", [lambda path: save_file({"a": torch.ones(10**5)}, path), partial(torch.save, torch.ones(10**5))]
)
def test_a_full_disk_is_one_sentence(save: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, before[1]))
    try:
        with (
            pytest.raises(BlipstreamError, match="cannot write "),
            _replaced(tmp_path / "state") as path,
        ):
            save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]


def test_a_finished_run_is_left_alone(adapter: Path, kana: Path, cache: Path) -> None:
    with pytest.raises(BlipstreamError, match="has a run that is finished"):
        run(kana, adapter, SHORT, cache)


def test_parts_of_a_step_give_the_same(kana: Path, cache: Path, tmp_path: Path) -> None:
    few = replace(SHORT, steps=3, metric="loss")
    whole, parts = (run(kana, tmp_path / str(each), replace(few, accumulate=each), cache)["loss"] for each in (1, 3))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_checkpoint_builds(english: Path, tmp_path: Path) -> None:
    """The build compares each caption with transformers."""
    settings = replace(FULL, batch=8, steps=2, prompt="a picture of ", metric="cider")
    source = open_source(str(english), None, None, None)
    finetune(str(CHECKPOINT), source, tmp_path / "out", settings, validation=0.1)

    build(str(tmp_path / "out"), "f32", tmp_path / "repository")
    before, after = weights_of(CHECKPOINT), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert not any(torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))
    assert BlipProcessor.from_pretrained(tmp_path / "out").tokenizer("a dog")["input_ids"]


@pytest.mark.full
def test_an_adapter_with_the_encoder_ends_merged(kana: Path, tmp_path: Path) -> None:
    settings = replace(LORA, encoder=True, batch=8, steps=1)
    source = open_source(str(kana), None, None, None)
    finetune(str(CHECKPOINT), source, tmp_path / "out", settings, validation=0.1, words=WORDS)

    build(str(tmp_path / "out"), "f32", tmp_path / "repository")
    before, after = weights_of(CHECKPOINT), weights_of(tmp_path / "out")
    name = "vision_model.encoder.layers.0.self_attn.qkv.weight"
    assert not torch.equal(before[name], after[name])


def test_the_loss_is_that_of_transformers() -> None:
    model = BlipForConditionalGeneration.from_pretrained(CHECKPOINT)
    trained = Trained(model, replace(FULL, encoder=False), 478)
    assert not any(name.startswith("vision_model") for name in trained.parameters)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    config = model.config.text_config
    texts = Texts(tokenizer, "a ", config.bos_token_id, config.sep_token_id, config.pad_token_id)
    pixels = torch.randn(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    batch = texts.batch([Pair("", texts.ids("dog")), Pair("", texts.ids("cat on a red background"))], pixels)
    assert batch.ids[:, 0].tolist() == [config.bos_token_id] * 2
    assert (batch.labels[:, :2] == IGNORED).all()
    assert batch.labels[0, 2] == batch.ids[0, 2]

    theirs = model(pixel_values=pixels, input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
    assert torch.equal(trained.loss(batch, 0.0), theirs)
    assert trained.loss(batch, 0.1) > theirs


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_words_are_learnt_by_the_model_that_is_served() -> None:
    """Which is the merged one: PEFT 0.21 has another head until then."""
    trained = Trained(BlipForConditionalGeneration.from_pretrained(CHECKPOINT).eval(), LORA, 482)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    ids = torch.tensor([[476, 478, 20, 481, 3]])
    images = torch.randn(1, 145, 192, generator=random)
    loss = trained.loss(Batch(images, ids, torch.ones_like(ids), ids), 0.0)
    assert trained.adapted
    merged = trained.adapted.merge_and_unload()
    served = merged.text_decoder(input_ids=ids, encoder_hidden_states=images, labels=ids).loss
    torch.testing.assert_close(loss, served)


def test_how_the_learning_rate_goes() -> None:
    steps = 100
    one_cycle = [learning_rate(LORA, step, steps) for step in range(steps)]
    assert max(one_cycle) == one_cycle[30] == LORA.learning_rate
    assert one_cycle[:31] == sorted(one_cycle[:31])
    assert one_cycle[30:] == sorted(one_cycle[30:], reverse=True)
    assert one_cycle[0] == pytest.approx(LORA.learning_rate / 25)
    cosine = [learning_rate(FULL, step, steps) for step in range(steps)]
    assert cosine[0] == FULL.learning_rate
    assert cosine[50] == pytest.approx(FULL.learning_rate / 2)
    assert cosine == sorted(cosine, reverse=True)


@pytest.mark.full
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # of Trainer's
def test_what_trainer_leaves_builds(english: Path, tmp_path: Path) -> None:
    """A folder with neither tokenizer nor image processor."""
    processor = BlipProcessor.from_pretrained(CHECKPOINT)
    examples = [
        dict(processor(images=Image.open(path), text=path.with_suffix(".txt").read_text(), return_tensors="pt"))
        for path in sorted(english.glob("*.png"))[:4]
    ]
    rows = [{name: value[0] for name, value in each.items()} | {"labels": each["input_ids"][0]} for each in examples]
    trainer = Trainer(
        BlipForConditionalGeneration.from_pretrained(CHECKPOINT),
        TrainingArguments(
            str(tmp_path / "out"), per_device_train_batch_size=1, max_steps=2, report_to="none", use_cpu=True
        ),
        train_dataset=rows,
    )
    trainer.train()
    trainer.save_model()
    build(str(tmp_path / "out"), "f32", tmp_path / "repository", processor=str(CHECKPOINT))


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_goes_on(number: signal.Signals, adapter: Path, kana: Path, tmp_path: Path) -> None:
    """At whatever it is doing then."""
    options = "--lora --new-tokens 120 --batch 8 --steps 16 --validate-steps 8 --metric exact --validation 0.1"
    places = ["--checkpoint", CHECKPOINT, "--data", kana, "--output", tmp_path / "out", "--save-minutes", "0"]
    command = [sys.executable, "-m", "blipstream_finetune", *options.split(), *map(str, places)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for attempt in range(3):  # the last one is left alone
        before = steps_done(tmp_path / "out")
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            while attempt < 2 and steps_done(tmp_path / "out") <= before and process.poll() is None:
                time.sleep(0.01)
            if attempt < 2:
                process.send_signal(number)
            printed = process.communicate()[0].decode()
        if (tmp_path / "out/metrics.json").exists():  # on a busy machine, a signal may come after the end
            break
    assert (tmp_path / "out/metrics.json").exists(), printed
    expected = weights_of(adapter)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(tmp_path / "out").items())


def steps_done(output: Path) -> int:
    """After how many steps the state on disk is."""
    with suppress(OSError, RuntimeError):
        return int(torch.load(output / "training" / STATE, weights_only=True)["progress"]["step"])
    return 0
