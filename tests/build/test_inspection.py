# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that cannot be served correctly is refused in one sentence, before anything is exported."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipTextConfig

from blipstream.command_line import CALLED_AS
from blipstream.errors import ArtifactError
from blipstream_bench.random_checkpoint import VOCABULARY, tokenizer_settings
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.command import main
from blipstream_build.inspection.tokenizer import BERT_IDS, BERT_SENTENCE, check_tokenizer
from tests.conftest import CHECKPOINT
from tests.support.terminal import sentence

WEIGHTS = "model.safetensors"
MATRIX = "text_decoder.bert.embeddings.word_embeddings.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


def refusal(checkpoint: Path | str, folder: Path, *options: str) -> str:
    """The one line in which the build refuses a checkpoint."""
    repository = folder / "repository"
    result = CliRunner().invoke(main, ["--checkpoint", str(checkpoint), "--repository", str(repository), *options])
    assert result.exit_code == 1, result.output
    assert not repository.exists()  # so nothing was exported
    assert "Traceback" not in result.output
    error = sentence(result.stderr)
    assert error.startswith("Error: ")
    return error.removeprefix("Error: ")


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_model(folder: Path, part: str, **values: Any) -> None:
    settings = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", **{part: settings[part] | values})


def edit_processor(folder: Path, **values: Any) -> None:
    """A value of None removes the field."""
    file = folder / "processor_config.json"
    fields = json.loads(file.read_text())["image_processor"] | values
    edit(file, image_processor={name: value for name, value in fields.items() if value is not None})


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    change(settings)
    (folder / "tokenizer.json").write_text(json.dumps(settings))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def as_trainer_leaves_it(folder: Path) -> None:
    remove(folder, "tokenizer.json", "tokenizer_config.json", "processor_config.json", "README.md")
    torch.save({}, folder / "training_args.bin")
    torch.save({}, folder / "optimizer.pt")


def as_pickle(folder: Path) -> None:
    as_trainer_leaves_it(folder)
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    remove(folder, WEIGHTS)


def as_the_authors(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save({"model": {}}, folder / "model_base_capfilt_large.pth")


def as_adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")


def as_pointer(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 123456\n"
        (folder / name).write_text(text)

    return spoil


def as_pipe(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        remove(folder, name)
        os.mkfifo(folder / name)

    return spoil


def link_to_nothing(folder: Path) -> None:
    remove(folder, WEIGHTS)
    (folder / WEIGHTS).symlink_to("gone")


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def shard(folder: Path) -> None:
    BlipForConditionalGeneration.from_pretrained(folder).save_pretrained(folder, max_shard_size="3MB")
    remove(folder, WEIGHTS)


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    remove(folder, "model-00002-of-00004.safetensors")


def empty_the_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def cut_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00004.safetensors").write_bytes(b"")


def within(folder: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000"):
        shutil.copytree(CHECKPOINT, folder / name)
    remove(folder, "config.json", WEIGHTS)


def prefix(start: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        edit_weights(folder, lambda weights: {start + name: weight for name, weight in weights.items()})

    return spoil


def not_a_number(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights[MATRIX][5, 5] = torch.nan
    return weights


def a_head_of_its_own(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    head = "text_decoder.cls.predictions"
    own = {f"{head}.decoder.weight": weights[MATRIX].flip(0), f"{head}.decoder.bias": weights[f"{head}.bias"].clone()}
    return weights | own


def untie(folder: Path) -> None:
    edit(folder / "config.json", tie_word_embeddings=False)
    edit_model(folder, "text_config", tie_word_embeddings=False)
    edit_weights(folder, a_head_of_its_own)


def more_words(settings: dict[str, Any]) -> None:
    settings["model"]["vocab"] |= {f"new{number}": 478 + number for number in range(5)}


def fewer_words(settings: dict[str, Any]) -> None:
    settings["model"]["vocab"] = {word: number for word, number in settings["model"]["vocab"].items() if number < 400}


def carriage_returns(settings: dict[str, Any]) -> None:
    special = {token["content"] for token in settings["added_tokens"]}
    settings["model"]["vocab"] = {
        word if word in special else word + "\r": number for word, number in settings["model"]["vocab"].items()
    }


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    # not a BLIP captioner
    "trainer": (as_trainer_leaves_it, "{folder} has no tokenizer (tokenizer.json, vocab.txt): give the hub name or"),
    "pickle": (
        as_pickle,
        "has no weights: expected model.safetensors in {folder}, not pytorch_model.bin: a pickle could",
    ),
    "authors": (as_the_authors, "{folder} has no config.json, only model_base_capfilt_large.pth: a pickle could"),
    "adapter": (
        as_adapter,
        "is an adapter (it has adapter_config.json), where a whole model is expected: merge it into",
    ),
    "LFS": (
        as_pointer(WEIGHTS),
        "{folder}/model.safetensors is a Git LFS pointer, not the file itself: run `git lfs pull`",
    ),
    "LFS tokenizer": (as_pointer("tokenizer.json"), "{folder}/tokenizer.json is a Git LFS pointer"),
    "runs within": (
        within,
        "{folder} has no config.json, only folders that have one (checkpoint-1000, checkpoint-500): give",
    ),
    "blip-2": (
        lambda folder: edit(
            folder / "config.json", architectures=["Blip2ForConditionalGeneration"], model_type="blip-2"
        ),
        "is Blip2ForConditionalGeneration (model type blip-2), not a BLIP captioner: expected",
    ),
    "git": (
        lambda folder: edit(folder / "config.json", architectures=["GitForCausalLM"], model_type="git"),
        "is GitForCausalLM (model type git), not a BLIP captioner: expected BlipForConditionalGeneration",
    ),
    "VQA": (
        lambda folder: edit(folder / "config.json", architectures=["BlipForQuestionAnswering"]),
        "is BlipForQuestionAnswering (model type blip), not a BLIP captioner: expected BlipForConditionalGeneration",
    ),
    "nothing": (
        lambda folder: edit(folder / "config.json", architectures=None),
        "is a model of unknown architecture (model type blip), not a BLIP captioner",
    ),
    "quantised": (
        lambda folder: edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "has quantised weights: expected those that it was quantised from",
    ),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json must be a JSON object, not list"),
    "no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read as JSON (Expecting",
    ),
    "a broken tokenizer_config": (
        lambda folder: (folder / "tokenizer_config.json").write_text("{"),
        "{folder}/tokenizer_config.json cannot be read as JSON (Expecting",
    ),
    "a list for tokenizer_config": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        "{folder}/tokenizer_config.json must be a JSON object, not list: copy or download it again",
    ),
    "a broken generation_config": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        "{folder}/generation_config.json cannot be read as JSON (Expecting",
    ),
    "a word for a number in generation_config": (
        lambda folder: (folder / "generation_config.json").write_text('{"max_new_tokens": "many"}'),
        "{folder}/generation_config.json cannot be read ('<=' not supported between instances of 'str' and",
    ),
    "a list for generation_config": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        "{folder}/generation_config.json must be a JSON object, not list: copy or download it again",
    ),
    "a pipe": (
        as_pipe("config.json"),
        "{folder}/config.json is no regular file, as is expected: copy or download it again",
    ),
    "a pipe of weights": (as_pipe(WEIGHTS), "{folder}/model.safetensors is no regular file, as is expected"),
    "bert": (
        lambda folder: edit(folder / "config.json", model_type="bert"),
        "{folder}/config.json has model_type 'bert': expected 'blip', as in Salesforce/blip-image-captioning-base; "
        "give it the config.json that was saved with its weights",
    ),
    "a link to nothing": (
        link_to_nothing,
        "{folder}/model.safetensors cannot be read: No such file or directory",
    ),
    "a folder for a file": (
        lambda folder: (folder / "more.json").mkdir(),
        "{folder}/more.json cannot be read: Is a directory",
    ),
    # weights
    "no weights": (
        lambda folder: remove(folder, WEIGHTS),
        "has no weights: expected model.safetensors in {folder}; save them anew by save_pretrained()",
    ),
    "cut short": (cut, "{folder}/model.safetensors is no whole safetensors file, at"),
    "a lost shard": (
        lose_a_shard,
        "lacks model-00002-of-00004.safetensors, of the 4 files that model.safetensors.index",
    ),
    "a cut shard": (cut_a_shard, "{folder}/model-00002-of-00004.safetensors is no whole safetensors file, at 0 bytes"),
    "an empty index": (empty_the_index, "model.safetensors.index.json names no weights: copy or download it again"),
    "another name": (
        lambda folder: (folder / WEIGHTS).rename(folder / "blip.safetensors"),
        "expected model.safetensors in {folder}, not blip.safetensors: give it that name if",
    ),
    "DataParallel": (
        prefix("module."),
        "names its weights as module.text_decoder.bert.embeddings.LayerNorm.bias: save",
    ),
    "torch.compile": (prefix("_orig_mod."), "save model._orig_mod instead of what torch.compile wraps around it"),
    "PEFT": (prefix("base_model.model."), "merge the adapters by merge_and_unload() and save that"),
    "not a number": (
        lambda folder: edit_weights(folder, not_a_number),
        f"has {MATRIX} with values that are no finite numbers: its training diverged",
    ),
    "a head": (untie, "has a head of its own, where its word embeddings are expected"),
    "more embeddings": (
        lambda folder: edit_model(folder, "text_config", vocab_size=500),
        "has text_decoder.bert.embeddings.word_embeddings.weight in shape [478, 128] where its config.json expects ",
    ),
    "fewer layers": (
        lambda folder: edit_model(folder, "text_config", num_hidden_layers=2),
        "has 26 weights for which its config.json has no place, as text_decoder.bert.encoder.layer.2.attention",
    ),
    "more layers": (
        lambda folder: edit_model(folder, "vision_config", num_hidden_layers=6),
        "lacks 12 of the weights that its config.json expects, as vision_model.encoder.layers.5.layer_norm1.bias",
    ),
    "heads": (
        lambda folder: edit_model(folder, "text_config", num_attention_heads=5),
        "checkpoint cannot be loaded: The hidden size (128) is not a multiple of the number of attention heads (5)",
    ),
    "a word for a number": (
        lambda folder: edit_model(folder, "text_config", vocab_size="many"),
        "checkpoint cannot be loaded: Validation error for field 'vocab_size'",
    ),
    "relu": (
        lambda folder: edit_model(folder, "text_config", hidden_act="relu"),
        "uses the activation relu: expected gelu",
    ),
    "no embedding": (
        lambda folder: edit_model(folder, "text_config", bos_token_id=30522),
        "has bos_token_id 30522 in its config.json: expected one of its 478 embeddings",
    ),
    "start is end": (
        lambda folder: edit_model(folder, "text_config", sep_token_id=476),
        "has bos_token_id 476, sep_token_id 476, pad_token_id 0 in its config.json: expected three different tokens",
    ),
    # tokenizer
    "no tokenizer": (
        lambda folder: remove(folder, "tokenizer.json"),
        "{folder} has no tokenizer (tokenizer.json, vocab.txt): give the hub name or folder of one that has what this "
        "checkpoint was trained with, as --processor Salesforce/blip-image-captioning-base",
    ),
    "empty tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "{folder}/tokenizer.json cannot be read ('added_tokens'): copy or download it again",
    ),
    "more words": (
        lambda folder: edit_tokenizer(folder, more_words),
        "{folder}/tokenizer.json has tokens up to 482, and the model has embeddings for 478: give the tokenizer that",
    ),
    "fewer words": (
        lambda folder: edit_tokenizer(folder, fewer_words),
        "tokens for the model's 478 embeddings: give the tokenizer that it was trained with",
    ),
    "carriage returns": (
        lambda folder: edit_tokenizer(folder, carriage_returns),
        "of its own words as what they are: its files are damaged, or not from one tokenizer",
    ),
    "a word for the end": (
        lambda folder: edit_model(folder, "text_config", sep_token_id=100),
        "{folder}/tokenizer.json reads sep_token_id 100 of config.json as ",
    ),
    # image processor
    "no image processor": (
        lambda folder: remove(folder, "processor_config.json"),
        "{folder} has no image processor (preprocessor_config.json): give the hub name or folder of one that",
    ),
    "a processor's name alone": (
        lambda folder: (folder / "processor_config.json").write_text('{"processor_class": "BlipProcessor"}'),
        "{folder} has no image processor (preprocessor_config.json): give the hub name or folder of one that",
    ),
    "384": (
        lambda folder: edit_processor(folder, size={"height": 384, "width": 384}),
        "{folder}/processor_config.json resizes images to 384 x 384 pixels, and the model takes 192 x 192: write "
        '"size": {"height": 192, "width": 192} there',
    ),
    "no size": (lambda folder: edit_processor(folder, size=None), "resizes images to 384 x 384 pixels, and the model"),
    "shortest edge": (
        lambda folder: edit_processor(folder, size={"shortest_edge": 192}),
        "resizes images to {'shortest_edge': 192}, and the model takes 192 x 192",
    ),
    "one mean": (
        lambda folder: edit_processor(folder, image_mean=0.5),
        "{folder}/processor_config.json has image_mean 0.5: expected three numbers between 0 and 1, for red, green and",
    ),
    "no deviation": (
        lambda folder: edit_processor(folder, image_std=None),
        "{folder}/processor_config.json has no image_std: expected three numbers between 0 and 1, for red, green and "
        'blue; write "image_std": [0.26862954, 0.26130258, 0.27577711] there if',
    ),
    "means of bytes": (
        lambda folder: edit_processor(folder, image_mean=[123.7, 116.3, 103.5]),
        "has image_mean (123.7, 116.3, 103.5): expected three numbers between 0 and 1",
    ),
    "no spread": (
        lambda folder: edit_processor(folder, image_std=[0.2, 0, 0.2]),
        "has image_std (0.2, 0, 0.2): expected three numbers between 0 and 1",
    ),
    "bilinear": (
        lambda folder: edit_processor(folder, resample=2),
        "has resample 2: expected 3, as all of BLIP's have",
    ),
    "not normalised": (
        lambda folder: edit_processor(folder, do_normalize=False),
        "has do_normalize False: expected true, as all of BLIP's have",
    ),
    "another scale": (
        lambda folder: edit_processor(folder, rescale_factor=0.0078125),
        "has rescale_factor 0.0078125: expected 1/255, as all of BLIP's have",
    ),
    "CLIP's": (
        lambda folder: edit_processor(folder, image_processor_type="CLIPImageProcessor"),
        "{folder}/processor_config.json is of a CLIPImageProcessor: expected a BlipImageProcessor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused(case: str, checkpoint: Path, tmp_path: Path) -> None:
    spoil, words = REFUSED[case]
    spoil(checkpoint)
    assert words.replace("{folder}", str(checkpoint)) in refusal(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model_base_capfilt_large.pth", "a pickle could run anything"),
        ("model.safetensors", "give the folder that it lies in"),
    ],
)
def test_a_file_is_no_folder(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    error = refusal(tmp_path / name, tmp_path)
    assert error.startswith(f"{tmp_path / name} is a file, where a folder is expected, with config.json, ")
    assert remedy in error


def test_nothing_is_no_name(tmp_path: Path) -> None:
    told = "CHECKPOINT is empty: give a hub name or a folder, or leave it out for the demo checkpoint"
    assert refusal("", tmp_path) == told


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = "caf\udce9"  # Python's form of a name that is Latin-1 on the disk
    assert refusal(name, tmp_path) == ("'caf\\udce9' is no UTF-8: give the folder another name, or set LC_ALL=C.UTF-8")


def test_sound_in_other_forms(checkpoint: Path) -> None:
    """These differences do no harm: shards, a size in one number, weights of other heads."""
    shard(checkpoint)
    as_pointer("pytorch_model.bin")(checkpoint)  # a clone that fetched only what it needs has such pointers
    edit_processor(checkpoint, size=192, image_processor_type=None)
    found = Checkpoint.find(str(checkpoint))
    model = found.load_model()
    assert len(found.load_tokenizer(model)) == 478
    config = found.config(model, "f32")
    assert (config.vision.image_size, config.vision.image_mean[0]) == (192, 0.48145466)


def test_sound_as_the_real_ones_have_it(checkpoint: Path) -> None:
    """An older transformers writes the image processor to another file, with fields that are no longer used."""
    fields = json.loads((checkpoint / "processor_config.json").read_text())["image_processor"]
    del fields["do_convert_rgb"]
    older = {"do_pad": True, "size_divisor": 32, "processor_class": "BlipProcessor"}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(fields | older))
    (checkpoint / "processor_config.json").write_text('{"processor_class": "BlipProcessor"}')
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    (checkpoint / "vocab.txt").write_text(
        "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__))
    )
    remove(checkpoint, "tokenizer.json")
    found = Checkpoint.find(str(checkpoint))
    assert found.image_processor == checkpoint / "preprocessor_config.json"
    assert found.tokenizer == checkpoint / "vocab.txt"
    model = found.load_model()
    assert found.load_tokenizer(model).get_vocab() == vocabulary | {"[DEC]": 476, "[ENC]": 477}
    assert found.config(model, "f32").vision.image_size == 192


def test_other_parts_of_blip_do_no_harm(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda weights: weights | {"itm_head.weight": torch.zeros(2, 128)})
    Checkpoint.find(str(checkpoint)).load_model()


def test_a_processor_fills_in_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    """It replaces nothing: the checkpoint's own tokenizer stays."""
    lender = tmp_path / "lender"
    shutil.copytree(checkpoint, lender)
    remove(lender, "config.json", WEIGHTS)  # from a hub, a lender's weights are not downloaded
    whole = Checkpoint.find(str(checkpoint))
    words = whole.load_tokenizer(whole.load_model()).get_vocab()
    remove(checkpoint, "processor_config.json")
    partly = Checkpoint.find(str(checkpoint), str(lender))
    assert partly.tokenizer == checkpoint / "tokenizer.json"
    assert partly.image_processor == lender / "processor_config.json"
    remove(checkpoint, "tokenizer.json", "tokenizer_config.json")
    bare = Checkpoint.find(str(checkpoint), str(lender))
    assert bare.tokenizer == lender / "tokenizer.json"
    edit_processor(lender, image_mean=[0.5, 0.5, 0.5])
    changed = Checkpoint.find(str(checkpoint), str(lender))
    assert len({each.revision for each in (whole, partly, bare, changed)}) == 4
    model = bare.load_model()
    assert bare.load_tokenizer(model).get_vocab() == words
    assert changed.config(model, "f32").vision.image_mean == (0.5, 0.5, 0.5)


def test_a_processor_that_is_not_needed(tmp_path: Path) -> None:
    error = refusal(CHECKPOINT, tmp_path, "--processor", str(CHECKPOINT))
    assert error == f"{CHECKPOINT} has a tokenizer and an image processor of its own: leave out --processor"


def test_a_processor_that_lacks_it_too(checkpoint: Path, tmp_path: Path) -> None:
    remove(checkpoint, "tokenizer.json")
    error = refusal(checkpoint, tmp_path, "--processor", str(checkpoint))
    assert error.startswith(f"{checkpoint} has no tokenizer (tokenizer.json, vocab.txt): give the hub name or folder")


def test_a_processor_is_a_variable_of_make(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CALLED_AS, "make")
    remove(checkpoint, "tokenizer.json")
    assert refusal(checkpoint, tmp_path).endswith("as PROCESSOR=Salesforce/blip-image-captioning-base")


def test_a_processor_that_is_a_pipe(checkpoint: Path, tmp_path: Path) -> None:
    remove(checkpoint, "processor_config.json")
    lender = tmp_path / "lender"
    lender.mkdir()
    os.mkfifo(lender / "processor_config.json")
    error = refusal(checkpoint, tmp_path, "--processor", str(lender))
    assert error.startswith(f"{lender}/processor_config.json is no regular file")


def test_a_processor_on_a_hub_that_cannot_be_reached(checkpoint: Path, tmp_path: Path) -> None:
    remove(checkpoint, "tokenizer.json")
    error = refusal(checkpoint, tmp_path, "--processor", "Salesforce/blip-image-captioning-base")
    assert error.startswith(
        "for --processor, there is no folder Salesforce/blip-image-captioning-base, and it could not be downloaded"
    )


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tokenizer of the real size, with the words by which BLIP's is recognised."""
    shutil.copyfile(CHECKPOINT / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_settings()))
    return tmp_path


def check_bert(folder: Path) -> None:
    text = BlipTextConfig(vocab_size=VOCABULARY)
    assert (text.bos_token_id, text.sep_token_id, text.pad_token_id) == (30522, 102, 0)
    check_tokenizer(AutoTokenizer.from_pretrained(folder), text, folder / "tokenizer.json")


def test_the_real_vocabulary_is_known(bert: Path) -> None:
    check_bert(bert)
    assert AutoTokenizer.from_pretrained(bert)(BERT_SENTENCE)["input_ids"] == [101, *BERT_IDS, 102]


def test_words_of_its_own_may_have_capitals(bert: Path) -> None:
    """As a fine-tuning adds them, for German say."""
    edit(bert / "tokenizer_config.json", do_lower_case=False)
    edit_tokenizer(bert, lambda settings: settings["model"]["vocab"].update(Hund=VOCABULARY))
    tokenizer = AutoTokenizer.from_pretrained(bert)
    check_tokenizer(tokenizer, BlipTextConfig(vocab_size=VOCABULARY + 1), bert / "tokenizer.json")


def lack_blips_own(folder: Path) -> None:
    """bert-base-uncased lacks them, and some checkpoints come with it: captions never contain these tokens."""

    def change(settings: dict[str, Any]) -> None:
        settings["added_tokens"] = [token for token in settings["added_tokens"] if token["id"] < VOCABULARY - 2]
        for word in ("[DEC]", "[ENC]"):
            del settings["model"]["vocab"][word]

    edit_tokenizer(folder, change)
    edit(folder / "tokenizer_config.json", bos_token=None, extra_special_tokens=[])


def test_blips_own_tokens_may_be_missing(bert: Path) -> None:
    lack_blips_own(bert)
    check_bert(bert)
    assert len(AutoTokenizer.from_pretrained(bert)) == VOCABULARY - 2


def swap(folder: Path) -> None:
    def change(settings: dict[str, Any]) -> None:
        words = settings["model"]["vocab"]
        words["dog"], words["beach"] = words["beach"], words["dog"]

    edit_tokenizer(folder, change)


def take_their_place(folder: Path) -> None:
    lack_blips_own(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[NEW]", "[NEWER]"]})
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            swap,
            "'a woman sitting on the beach with her dog' as [1037, 2450, 3564, 2006, 1996, 3899, 2007, 2014, 3509]",
        ),
        (
            lambda folder: edit(folder / "tokenizer_config.json", do_lower_case=False),
            "reads 'A WOMAN SITTING ON THE BEACH WITH HER DOG' as [100, 100, 100, ",
        ),
        (take_their_place, "has '[NEW]' as token 30522, which is BLIP's [DEC]: add tokens behind it"),
    ],
)
def test_another_vocabulary_of_the_real_size(spoil: Callable[[Path], object], words: str, bert: Path) -> None:
    spoil(bert)
    with pytest.raises(ArtifactError) as error:
        check_bert(bert)
    assert words in str(error.value)
