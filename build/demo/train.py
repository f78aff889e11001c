# SPDX-License-Identifier: Apache-2.0
"""Train the demo checkpoint: a small BLIP, in transformers' own format, that captions emoji scenes.

python build/demo/train.py      # about an hour on two cores
python build/demo/examine.py    # its accuracy, model card and sample images
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim import AdamW, Muon
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from scenes import ARRANGEMENTS, random_scene, require_font

DEMO = Path(__file__).resolve().parent
IMAGE_SIZE = 192  # pixels
VOCABULARY_SIZE = 480
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer so small that some names take several pieces. Each training breaks ties differently."""
    wordpiece = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS[1]))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()&/"),
        show_progress=False,
    )
    rng = random.Random("captions")
    captions = [random_scene(rng, rng.choice(ARRANGEMENTS)).caption for _ in range(20_000)]
    wordpiece.train_from_iterator(captions, trainer)
    tokenizer = BertTokenizer(vocab=wordpiece.get_vocab())
    # BLIP adds these to BERT's vocabulary: the start of a caption, and the start of a question
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def new_model(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """A 2.9M-parameter BLIP with random weights and 2-D sine tables in its vision position embedding."""
    config = BlipConfig(
        text_config=BlipTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            encoder_hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=tokenizer.convert_tokens_to_ids("[DEC]"),
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=BlipVisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=16,
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=5,
            num_attention_heads=6,
            initializer_range=0.02,
        ),
        initializer_range=0.02,
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        embeddings.position_embedding[0, 1:] = 0.5 * _sine_table(
            IMAGE_SIZE // config.vision_config.patch_size, config.vision_config.hidden_size
        )
    return model


def _sine_table(side: int, width: int) -> Tensor:
    """[side * side, width]: half the channels encode the row, half the column. Relations are learnt late without it."""
    frequencies = math.pi / 2 ** torch.linspace(0, math.log2(2 * side), width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    return torch.cat([axis.repeat_interleave(side, 0), axis.repeat(side, 1)], dim=1)


class Scenes(IterableDataset[tuple[npt.NDArray[np.uint8], str]]):
    """Endless training scenes, different in every worker."""

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.uint8], str]]:
        worker = get_worker_info()
        rng = random.Random(f"training {worker.id if worker else 0}")
        while True:
            # relations take longest to learn
            scene = random_scene(rng, rng.choices(ARRANGEMENTS, weights=(2, 2, 4, 4))[0])
            yield np.asarray(scene.draw(IMAGE_SIZE)), scene.caption


class Collator:
    """Turns scenes into a batch, in the worker that drew them."""

    def __init__(self, tokenizer: BertTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, batch: list[tuple[npt.NDArray[np.uint8], str]]) -> tuple[Tensor, Tensor]:
        """uint8 pixels [B, H, W, 3] and int64 token ids [B, L], from [DEC] to [SEP]."""
        ids = self.tokenizer([caption for _, caption in batch], padding=True, return_tensors="pt")["input_ids"]
        ids[:, 0] = self.tokenizer.bos_token_id
        return torch.from_numpy(np.stack([pixels for pixels, _ in batch])), ids


def train(model: BlipForConditionalGeneration, processor: BlipProcessor, images: int, batch_size: int) -> None:
    """Train the model on `images` scenes: Muon for matrices, AdamW for the rest, linear warm-up and decay."""
    device = model.device
    loader = iter(
        DataLoader(
            Scenes(),
            batch_size,
            num_workers=2 if device.type == "cpu" else 12,
            collate_fn=Collator(processor.tokenizer),
            prefetch_factor=4,
        )
    )
    mean = torch.tensor(processor.image_processor.image_mean, device=device).view(3, 1, 1) * 255
    std = torch.tensor(processor.image_processor.image_std, device=device).view(3, 1, 1) * 255
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embedding" not in name and "predictions.decoder" not in name
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = (
        Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    )
    steps = images // batch_size
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 100, max(0.0, (steps - step) / steps) * 1.25, 1.0)
        )
        for optimizer in optimizers
    ]
    model.train()
    began = time.monotonic()
    for step in range(1, steps + 1):
        pixels, ids = (tensor.to(device) for tensor in next(loader))
        pixel_values = (pixels.permute(0, 3, 1, 2).float() - mean) / std
        labels = ids.masked_fill(ids == processor.tokenizer.pad_token_id, -100)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(pixel_values=pixel_values, input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 50 == 0 or step == steps:
            rate = step * batch_size / (time.monotonic() - began)
            print(f"{step}/{steps} steps, loss {loss.item():.4f}, {rate:.0f} images/s", flush=True)


def main() -> None:
    """Train and save. build/demo/examine.py then measures the result."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--images", type=int, default=200_000, help="scenes to train on (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="scenes a step (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=DEMO / "checkpoint", help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    require_font()
    tokenizer = train_tokenizer()
    image_processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = BlipProcessor(image_processor, tokenizer)
    model = new_model(tokenizer).to(arguments.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, processor, arguments.images, arguments.batch_size)
    model.cpu().save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
