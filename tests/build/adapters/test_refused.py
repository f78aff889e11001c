# SPDX-License-Identifier: Apache-2.0
"""What cannot be served is refused in one sentence, as the command prints it, and nothing is installed."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream_build.adapters.command import main
from blipstream_build.adapters.convert import adapter_weights
from blipstream_build.adapters.peft_folder import PeftFolder
from tests.conftest import CHECKPOINT
from tests.support.peft_folders import save_peft_folder
from tests.support.terminal import sentence

CONFIG, WEIGHTS, TOKENIZER = "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"
LAYER = "base_model.model.text_decoder.bert.encoder.layer"
QUERY = f"{LAYER}.0.attention.self.query.lora_A.weight"
ROWS = "base_model.model.text_decoder.bert.embeddings.word_embeddings.token_adapter.trainable_tokens_delta"
MERGE = "merge it into a checkpoint by PEFT's merge_and_unload(), and build that"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_peft_folder(tmp_path_factory.mktemp("good") / "peft", words=2)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(good, tmp_path / "peft")


@pytest.fixture
def refusal(f32_artifacts: Path) -> Callable[[Path], str]:
    """What the command says of a folder."""

    def said(folder: Path, name: str = "test") -> str:
        result = CliRunner().invoke(main, ["add", f"{name}={folder}", "--repository", str(f32_artifacts)])
        assert result.exit_code == 1, result.output
        assert not (f32_artifacts / "decoder/1/adapters").exists()
        return sentence(result.stderr).removeprefix("Error: ").replace(f"{folder}", "PEFT")

    return said


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / WEIGHTS) | changes
    save_file({name: weight for name, weight in weights.items() if weight is not None}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peft_type": "IA3"}, f"PEFT/{CONFIG} is of the kind IA3, and only LORA can be served: {MERGE}"),
        ({"peft_type": None}, "is of the kind None"),
        ({"use_dora": True}, f"PEFT/{CONFIG} has use_dora 'True', and only plain LoRA can be served: {MERGE}"),
        ({"lora_bias": True}, "has lora_bias 'True', and only plain LoRA"),
        ({"something_new": {"a": 1}}, """has something_new "{'a': 1}", and only plain LoRA"""),
        ({"bias": "all"}, f"PEFT/{CONFIG} has bias 'all', and biases stay the base's: {MERGE}"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa', which changes the base: save it again by"),
        ({"init_lora_weights": ["pissa"]}, """has init_lora_weights "['pissa']", which changes"""),
        ({"r": 0}, f"PEFT/{CONFIG} has r '0': expected a positive number"),
        ({"lora_alpha": "8"}, "has lora_alpha '8': expected a positive number"),
        ({"rank_pattern": ["query"]}, "has rank_pattern"),
        ({"alpha_pattern": {"(": 1}}, "has alpha_pattern"),
        ({"r": 8}, f"in shape [4, 128], where its {CONFIG} and the base expect [8, 128]: is it for another size of"),
        ({"trainable_token_indices": {"a": [1], "b": [2]}}, "has trainable_token_indices"),
        ({"trainable_token_indices": [3, 478]}, f"PEFT trains words of the base: {MERGE}"),
        (
            {"trainable_token_indices": [478, 480]},
            "has embeddings in shape [2, 128] for 2 tokens: expected 128 numbers",
        ),
        ({"trainable_token_indices": None}, "has embeddings in shape [2, 128] for 0 tokens"),
        (
            {"base_model_name_or_path": "Salesforce/blip-image-captioning-large"},
            "PEFT was made for Salesforce/blip-image-captioning-large, and the repository has emoji-demo@",
        ),
        ({"base_model_name_or_path": 3}, "has a base_model_name_or_path that is no text"),
    ],
)
def test_settings(changes: dict[str, object], expected: str, folder: Path, refusal: Callable[[Path], str]) -> None:
    edit(folder / CONFIG, **changes)
    assert expected in refusal(folder)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (
            {QUERY: None},
            f"PEFT has half a term, {QUERY.removeprefix('base_model.model.').replace('_A', '_B')}: copy or",
        ),
        ({QUERY: torch.zeros(4, 768)}, "in shape [4, 768], where its adapter_config.json and the base expect [4, 128]"),
        ({QUERY: torch.full((4, 128), torch.nan)}, "with values that are no finite numbers: its training diverged, or"),
        ({f"{LAYER}.3.attention.self.query.lora_A.weight": torch.zeros(4, 128)}, "is of no linear layer of the text"),
        (
            {"base_model.model.vision_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.zeros(4, 192)},
            "PEFT has terms in the image encoder (vision_model.encoder.layers.0.mlp.fc1.lora_A.weight), which all "
            f"captions share: {MERGE}",
        ),
        (
            {"base_model.model.text_decoder.cls.predictions.decoder.lora_A.weight": torch.zeros(4, 128)},
            f"changes words of the base (text_decoder.cls.predictions.decoder.lora_A.weight): {MERGE}",
        ),
        (
            {ROWS.replace("token_adapter.trainable_tokens_delta", "lora_embedding_A"): torch.zeros(4, 480)},
            "changes words",
        ),
        (
            {"bert.encoder.layer.0.x": torch.zeros(1)},
            "names its weights as bert.encoder.layer.0.x: expected base_model.",
        ),
        ({ROWS: torch.zeros(3, 128)}, "has embeddings in shape [3, 128] for 2 tokens"),
        ({ROWS: torch.zeros(2, 64)}, "has embeddings in shape [2, 64] for 2 tokens"),
        ({ROWS: None}, f"PEFT/{TOKENIZER} has tokens up to 479, and there are embeddings up to 477: train those of"),
    ],
)
def test_weights(
    weights: dict[str, torch.Tensor | None], expected: str, folder: Path, refusal: Callable[[Path], str]
) -> None:
    edit_weights(folder, **weights)
    assert expected in refusal(folder)


def test_trained_words_of_the_base(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    folder = save_peft_folder(tmp_path, modules_to_save=["word_embeddings"], ensure_weight_tying=True)
    assert refusal(folder) == f"PEFT trains words of the base: {MERGE}"
    apart = save_peft_folder(tmp_path / "apart", modules_to_save=["word_embeddings"])
    assert "PEFT has trained the word embeddings apart from the head, and in BLIP the two" in refusal(apart)


def test_tokenizers(folder: Path, refusal: Callable[[Path], str]) -> None:
    file = folder / TOKENIZER
    text = file.read_text()
    file.unlink()
    assert refusal(folder).startswith(f"PEFT adds 2 words, and has no {TOKENIZER} that knows them: save the tokenizer")
    values = json.loads(text)
    words = sorted(values["model"]["vocab"], key=values["model"]["vocab"].get)
    for one, other in ((words[200], words[201]), ("[SEP]", "[CLS]")):
        vocabulary = values["model"]["vocab"]
        changed = vocabulary | {one: vocabulary[other], other: vocabulary[one]}
        file.write_text(json.dumps(values | {"added_tokens": [], "model": values["model"] | {"vocab": changed}}))
        assert "where its base has" in refusal(folder)
    plain = [each | {"special": False} for each in values["added_tokens"]]
    file.write_text(json.dumps(values | {"added_tokens": plain}))
    assert "as a word, which is a special token of the base's" in refusal(folder)
    file.write_text(text[:-100])
    assert "cannot be read" in refusal(folder)


def test_another_base(folder: Path, refusal: Callable[[Path], str]) -> None:
    (folder / "blipstream.json").write_text(json.dumps({"base": "emoji-demo", "base_revision": "0123456789abcdef"}))
    said = refusal(folder)
    assert said.startswith("PEFT was made for emoji-demo@0123456789ab, and the repository has emoji-demo@")
    assert said.endswith(": build the one that it was made for, or fine-tune again on what is there")
    for values in (
        {"base": 3},
        {"metrics": {"loss": "low"}},
        {"language": ["fr"]},
        {"metrics": {"loss": float("nan")}},
    ):
        (folder / "blipstream.json").write_text(json.dumps(values))
        assert "PEFT/blipstream.json has " in refusal(folder)


def test_files(folder: Path, tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    assert refusal(tmp_path / "none").startswith("there is no folder PEFT: give the one that PEFT's save_pretrained()")
    assert "is a file, where a folder is expected" in refusal(folder / CONFIG)
    assert (
        refusal(folder.parent)
        == f"PEFT has no {CONFIG}, as an adapter of PEFT's has, only folders that have one (peft): give one of these"
    )
    assert refusal(CHECKPOINT).endswith(
        "as an adapter of PEFT's has: it is a whole checkpoint, which `blipstream build` takes"
    )
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:1000])
    assert "is no whole safetensors file" in refusal(folder)
    (folder / WEIGHTS).unlink()
    assert f"PEFT/{WEIGHTS} cannot be read: No such file" in refusal(folder)
    (folder / "adapter_model.bin").touch()
    assert "PEFT has adapter_model.bin, a pickle, which could run anything: if you trust it" in refusal(folder)
    save_file({}, folder / WEIGHTS)
    (folder / TOKENIZER).unlink()
    assert refusal(folder) == "PEFT has no weights: expected the terms of LoRA"


@pytest.mark.parametrize("name", ["../../x", ".hidden", "a/b", "x" * 65, "é", "a b"])
def test_names(name: str, good: Path, refusal: Callable[[Path, str], str]) -> None:
    assert "cannot name an adapter: expected at most 64 letters, digits" in refusal(good, name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "trainable_token_indices", "bias", "init_lora_weights")


@pytest.fixture(scope="module")
def scratch(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose settings a test may spoil."""
    return shutil.copytree(good, tmp_path_factory.mktemp("scratch") / "peft")


@settings(max_examples=50)
@given(st.sampled_from([*KEYS, "peft_type", "use_rslora", "base_model_name_or_path", "modules_to_save", "new"]), JSON)
def test_any_value_is_taken_or_refused(good: Path, scratch: Path, f32_artifacts: Path, key: str, value: object) -> None:
    """No traceback comes of it."""
    shutil.copy(good / CONFIG, scratch)
    edit(scratch / CONFIG, **{key: value})
    config = CheckpointConfig.load(f32_artifacts / "decoder/1/artifact")
    embedding = torch.zeros(config.text.vocab_size, config.text.hidden_size)
    with suppress(ArtifactError):
        adapter = PeftFolder.find(scratch)
        adapter.check_base(config)
        adapter_weights(adapter, embedding, config.text)
