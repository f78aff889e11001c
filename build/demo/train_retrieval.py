# SPDX-License-Identifier: Apache-2.0
"""Train the demo retrieval checkpoint, which tells right captions of emoji scenes from wrong ones.

python build/demo/train_retrieval.py      # about half an hour on two quiet cores, after the captioner
python build/demo/examine_retrieval.py    # its accuracy and model card

It starts from the captioner: the vision encoder is the captioner's, and the text encoder its decoder. The vision
encoder's first layers stay as they are, so a fixed pool of scenes passes through them once. The state is saved every
few minutes; the same command goes on from there.
"""

import argparse
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip.modeling_blip import BlipEncoderLayer

from scenes import ARRANGEMENTS, Description, Scene, arrange, random_scene, require_font

DEMO = Path(__file__).resolve().parent
CAPTIONER = DEMO / "checkpoint"
FROZEN_LAYERS = 4  # of the vision encoder's five
GROUP = 4  # scenes that differ in one thing each: the others' captions are hard negatives
CAPTIONS = 5  # that matching sees of a scene: the right one, one of its group, two spoiled ones, one that looks right
MATCHED = 0.5  # the fraction of a batch that matching sees: it learns faster than contrast, and costs more
SHORT = 0.2  # the fraction of captions that do not speak of the background
PEAK_RATE = 2e-3  # learning rate
THREADS = 2  # each has a part of every batch; on a busy machine, two that share each operation wait for each other
SAVE_EVERY = 180  # seconds


def new_model(captioner: BlipForConditionalGeneration, tokenizer: BertTokenizer) -> BlipForImageTextRetrieval:
    """The captioner's weights, with new projections and a new matching head."""
    config = BlipConfig(
        text_config=captioner.config.text_config,  # with is_decoder, without which there is no cross-attention
        vision_config=captioner.config.vision_config,
        image_text_hidden_size=captioner.config.image_text_hidden_size,
        initializer_range=captioner.config.initializer_range,
    )
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(config)
    model.vision_model.load_state_dict(captioner.vision_model.state_dict())
    model.text_encoder.load_state_dict(captioner.text_decoder.bert.state_dict())
    words = model.text_encoder.embeddings.word_embeddings.weight
    with torch.no_grad():  # the captioner never sees [CLS]; its captions start with [DEC]
        words[tokenizer.cls_token_id] = words[tokenizer.bos_token_id]
    return model


def through_frozen(model: BlipForImageTextRetrieval, pixel_values: Tensor) -> Tensor:
    """What the vision encoder's frozen layers make of [B, 3, H, W]: [B, N, E]."""
    hidden: Tensor = model.vision_model.embeddings(pixel_values)
    for layer in model.vision_model.encoder.layers[:FROZEN_LAYERS]:
        hidden = _vision_layer(layer, hidden)
    return hidden


def through_trained(model: BlipForImageTextRetrieval, hidden: Tensor, whole: int) -> tuple[Tensor, Tensor]:
    """image_embeds of what `through_frozen` returned: at the first token [B, E], and all [whole, N, E] of the first."""
    *layers, last = model.vision_model.encoder.layers[FROZEN_LAYERS:]
    for layer in layers:
        hidden = _vision_layer(layer, hidden)
    norm = model.vision_model.post_layernorm
    full = norm(_vision_layer(last, hidden[:whole]))
    rest = norm(_vision_layer(last, hidden[whole:], queries=1))
    return torch.cat([full[:, 0], rest[:, 0]]), full


def _vision_layer(layer: BlipEncoderLayer, hidden: Tensor, queries: int | None = None) -> Tensor:
    """BlipEncoderLayer on [B, N, E], with fused attention, for the first `queries` tokens or all: [B, queries, E].

    transformers' own attention takes twice the time.
    """
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    query, key, value = (
        functional.linear(x, weight, bias).view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for x, weight, bias in zip((normed[:, :queries], normed, normed), weights, biases, strict=True)
    )  # each [B, heads, N, E / heads]
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    hidden = hidden[:, :queries] + attention.projection(mixed)
    out: Tensor = hidden + layer.mlp(layer.layer_norm2(hidden))
    return out


def group_of_scenes(index: int) -> list[Scene]:
    """Group number `index` of the pool: a training scene, and three of which one thing each is different."""
    rng = random.Random(f"retrieval {index}")
    # relations take longest to learn
    scene = random_scene(rng, rng.choices(ARRANGEMENTS, weights=(2, 2, 4, 4))[0])
    return [scene, *(arrange(rng, description) for description in scene.description.spoiled(rng)[: GROUP - 1])]


def fill_pool(
    path: Path,
    groups: Sequence[Sequence[Scene]],
    model: BlipForImageTextRetrieval,
    processor: BlipImageProcessorPil,
    threads: ThreadPoolExecutor,
) -> npt.NDArray[np.float16]:
    """[groups, GROUP, N, E] on disk: each scene after the frozen layers. Drawn if the file is not there."""
    pool: npt.NDArray[np.float16]
    if path.exists():
        pool = np.load(path, mmap_mode="r")
        return pool
    vision = model.config.vision_config
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (processor.image_mean, processor.image_std))
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    unfinished = path.with_suffix(".unfinished")
    shape = (len(groups), GROUP, tokens, vision.hidden_size)
    pool = np.lib.format.open_memmap(unfinished, "w+", np.float16, shape)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def fill(start: int) -> int:
        part = groups[start : start + 8]
        pixels = np.stack([np.asarray(scene.draw(vision.image_size)) for group in part for scene in group])
        hidden = through_frozen(model, (torch.from_numpy(pixels).permute(0, 3, 1, 2) - mean) / std).half()
        pool[start : start + len(part)] = hidden.view(-1, GROUP, tokens, vision.hidden_size).numpy()
        return start

    began = time.monotonic()
    for done in threads.map(fill, range(0, len(groups), 8)):
        if done % 160 == 0:
            print(f"{done}/{len(groups)} groups drawn, {time.monotonic() - began:.0f} s", flush=True)
    unfinished.rename(path)
    return pool


@dataclass
class Captions:
    """Captions and what they are true of. B scenes have C each."""

    ids: Tensor  # int64 [B, C, L], from [CLS] to [SEP], padded
    mask: Tensor  # bool [B, C, L]: not padding
    true: Tensor  # bool [B, C, B]: whether a caption is true of a scene


def write_captions(
    descriptions: Sequence[Sequence[Description]], scenes: Sequence[Scene], tokenizer: BertTokenizer
) -> Captions:
    """The captions of B scenes, the same number for each."""
    texts = np.array([[str(description) for description in row] for row in descriptions])
    full = np.array([scene.caption for scene in scenes])
    short = np.array([str(scene.description.without_background()) for scene in scenes])
    encoded = tokenizer(texts.ravel().tolist(), padding=True, return_tensors="pt")
    return Captions(
        encoded["input_ids"].view(*texts.shape, -1),
        encoded["attention_mask"].view(*texts.shape, -1).bool(),
        torch.from_numpy((texts[:, :, None] == full) | (texts[:, :, None] == short)),
    )


def encode_packed(model: BlipForImageTextRetrieval, ids: Tensor, mask: Tensor, image_embeds: Tensor) -> Tensor:
    """The state [B, C, D] at the first token of ids [B, C, L], which look at image_embeds [B, N, E].

    All captions of an image are one row, in which each sees itself alone: the image's keys and values are made once.
    """
    count, captions, length = ids.shape
    owner = torch.arange(captions).repeat_interleave(length)
    sees = (owner[:, None] == owner) & mask.view(count, 1, 1, -1)  # [B, 1, C * L, C * L]
    hidden: Tensor = model.text_encoder(
        input_ids=ids.view(count, -1),
        position_ids=torch.arange(length).repeat(captions).expand(count, -1),
        attention_mask=torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min),
        encoder_hidden_states=image_embeds,
    ).last_hidden_state
    return hidden[:, ::length]


def contrastive_loss(similarity: Tensor, true: Tensor) -> Tensor:
    """InfoNCE in both directions of [texts, images], where text i belongs to image i. Other true pairs do not count."""
    logits = similarity.masked_fill(true & ~torch.eye(len(true), dtype=torch.bool), -torch.inf)
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


class Trainer:
    """The model, its optimizers and its pool of scenes."""

    def __init__(self, captioner: Path, groups: int, batch_size: int, epochs: int, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.tokenizer = AutoTokenizer.from_pretrained(captioner)
        self.image_processor = BlipImageProcessorPil.from_pretrained(captioner)
        self.model = new_model(BlipForConditionalGeneration.from_pretrained(captioner), self.tokenizer)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # of the cosines; 1 / 0.07
        self.groups = [group_of_scenes(index) for index in range(groups)]
        torch.set_num_threads(1)
        self.threads = ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,))
        self.pool = fill_pool(state / f"pool-{groups}.npy", self.groups, self.model, self.image_processor, self.threads)
        self.batch_groups = batch_size // GROUP
        self.steps_an_epoch = groups // self.batch_groups
        self.steps = self.steps_an_epoch * epochs
        self.path = state / "state.pt"
        self.step = 0
        self.model.vision_model.embeddings.requires_grad_(False)
        self.model.vision_model.encoder.layers[:FROZEN_LAYERS].requires_grad_(False)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "embeddings" not in name and "itm_head" not in name]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        self.trained = [*matrices, *others, self.log_scale]
        self.optimizers: tuple[Optimizer, ...] = (
            Muon([{"params": matrices, "peak": PEAK_RATE}], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            AdamW(
                [{"params": others, "peak": PEAK_RATE}, {"params": [self.log_scale], "peak": 5 * PEAK_RATE}],
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        )
        if self.path.exists():
            self._resume()

    def _backward(self, groups: Sequence[int], seed: str) -> Tensor:
        """Add the gradients of a part of the batch. Returns its two losses [2]."""
        losses = torch.stack(self.losses(groups, random.Random(seed)))
        torch.autograd.backward(losses.sum() / THREADS)
        return losses.detach()

    def losses(self, groups: Sequence[int], rng: random.Random) -> tuple[Tensor, Tensor]:
        """The contrastive loss and the matching loss of some groups of the pool."""
        hidden = torch.from_numpy(self.pool[list(groups)]).flatten(0, 1).float()
        scenes = [scene for index in groups for scene in self.groups[index]]
        whole = round(MATCHED * len(scenes))
        captions = write_captions(
            [self._descriptions(scenes, i, rng) for i in range(len(scenes))], scenes, self.tokenizer
        )
        first, image_embeds = through_trained(self.model, hidden, whole)

        own_ids, own_mask = captions.ids[:, 0], captions.mask[:, 0].long()
        text = self.model.text_encoder(input_ids=own_ids, attention_mask=own_mask).last_hidden_state[:, 0]
        text = functional.normalize(self.model.text_proj(text), dim=-1)
        image = functional.normalize(self.model.vision_proj(first), dim=-1)
        similarity = text @ image.T * self.log_scale.exp()
        contrastive = contrastive_loss(similarity, captions.true[:, 0])

        # the own caption of another scene, likelier the more it looks right
        with torch.no_grad():
            likely = similarity.T.masked_fill(captions.true[:, 0].T, -torch.inf).softmax(1)
            generator = torch.Generator().manual_seed(rng.getrandbits(32))
            chosen = likely[:whole].multinomial(1, generator=generator)  # [whole, 1]
        scene = torch.arange(whole)[:, None]
        owner = torch.cat([scene.expand(-1, CAPTIONS - 1), chosen], 1)
        place = torch.cat([torch.arange(CAPTIONS - 1).expand(whole, -1), torch.zeros_like(chosen)], 1)
        states = encode_packed(self.model, captions.ids[owner, place], captions.mask[owner, place], image_embeds)
        logits = self.model.itm_head(states)
        matching = functional.cross_entropy(logits.flatten(0, 1), captions.true[owner, place, scene].long().flatten())
        return contrastive, matching

    def _descriptions(self, scenes: Sequence[Scene], index: int, rng: random.Random) -> list[Description]:
        """The right one, then one of its group and two spoiled ones."""
        start = index - index % GROUP
        group = [scenes[i].description for i in range(start, start + GROUP) if i != index]
        own = scenes[index].description
        chosen = [own, rng.choice(group), *own.spoiled(rng)[:2]]
        # a right caption may be silent on the background; so may one that is wrong in something else
        short = [description.without_background() for description in chosen]
        return [
            brief if rng.random() < SHORT and (place == 0 or brief != short[0]) else description
            for place, (description, brief) in enumerate(zip(chosen, short, strict=True))
        ]

    def train(self) -> None:
        """Train to the last step."""
        self.model.train()
        saved = began = time.monotonic()
        first = self.step
        recent: list[Tensor] = []
        while self.step < self.steps:
            for optimizer in self.optimizers:
                for settings in optimizer.param_groups:
                    settings["lr"] = settings["peak"] * self._schedule()
            batch = self._batch()
            parts = [batch[part::THREADS] for part in range(THREADS)]
            seeds = [f"step {self.step} part {part}" for part in range(THREADS)]
            losses = torch.stack(list(self.threads.map(self._backward, parts, seeds))).mean(0)
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.step += 1
            recent.append(losses)
            if self.step % 25 == 0 or self.step == self.steps:
                rate = (self.step - first) * self.batch_groups * GROUP / (time.monotonic() - began)
                contrastive, matching = torch.stack(recent).mean(0)
                recent.clear()
                print(
                    f"{self.step}/{self.steps} steps, contrastive {contrastive:.3f}, matching {matching:.4f},"
                    f" scale {self.log_scale.exp():.1f}, {rate:.0f} scenes/s",
                    flush=True,
                )
            if time.monotonic() - saved > SAVE_EVERY or self.step == self.steps:
                self._save_state()
                saved = time.monotonic()

    def _schedule(self) -> float:
        """Warm-up over 50 steps, then linear decay over the last two fifths."""
        return min((self.step + 1) / 50, 2.5 * (self.steps - self.step) / self.steps, 1.0)

    def _batch(self) -> list[int]:
        """The numbers of this step's groups: each once an epoch."""
        epoch, step = divmod(self.step, self.steps_an_epoch)
        order = list(range(len(self.groups)))
        random.Random(f"epoch {epoch}").shuffle(order)
        return order[step * self.batch_groups : (step + 1) * self.batch_groups]

    def _save_state(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "log_scale": self.log_scale.detach(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        unfinished = self.path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.path)

    def _resume(self) -> None:
        state = torch.load(self.path)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.log_scale.data.copy_(state["log_scale"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"goes on from step {self.step} of {self.path}", flush=True)

    def save_checkpoint(self, folder: Path) -> None:
        """Save model and processor for transformers: the weights in f16, which it loads as f32."""
        words = self.model.text_encoder.embeddings.word_embeddings.weight
        with torch.no_grad():  # captions may start with either
            words[self.tokenizer.convert_tokens_to_ids("[ENC]")] = words[self.tokenizer.cls_token_id]
        halves = {name: value.half() for name, value in self.model.state_dict().items()}
        self.model.save_pretrained(folder, state_dict=halves)
        self.tokenizer.backend_tokenizer.no_padding()  # which training has set
        BlipProcessor(self.image_processor, self.tokenizer).save_pretrained(folder)


def main() -> None:
    """Train and save. build/demo/examine_retrieval.py then measures the result."""
    parser = argparse.ArgumentParser(description="Train the demo retrieval checkpoint.")
    parser.add_argument(
        "--groups", type=int, default=3000, help=f"of {GROUP} scenes in the pool (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=16, help="passes over the pool (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="scenes a step (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=DEMO / "retrieval-checkpoint", help="default: %(default)s")
    parser.add_argument(
        "--state", type=Path, default=DEMO / "retrieval-state", help="pool and training state (default: %(default)s)"
    )
    arguments = parser.parse_args()
    require_font()
    trainer = Trainer(CAPTIONER, arguments.groups, arguments.batch_size, arguments.epochs, arguments.state)
    trainer.train()
    trainer.save_checkpoint(arguments.output)


if __name__ == "__main__":
    main()
