# SPDX-License-Identifier: Apache-2.0
"""How good the captions of held-out images are."""

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from blipstream.errors import BlipstreamError
from blipstream.text.tokenizer import KANA_OR_IDEOGRAPH
from blipstream_finetune.data import Data
from blipstream_finetune.embeddings import EmbeddingCache
from blipstream_finetune.examples import IGNORED, PixelReader, Texts, in_order
from blipstream_finetune.model import Trained
from blipstream_finetune.settings import Metric

BATCH = 64
NEW_TOKENS = 50  # of a caption, at most
# words, and single characters of languages that have no spaces
TOKEN = re.compile(rf"[{KANA_OR_IDEOGRAPH}]|[^\W{KANA_OR_IDEOGRAPH}]+")


class Validation:
    """The held-out data and what is measured on them."""

    def __init__(
        self,
        data: Data,
        images: PixelReader | EmbeddingCache,
        texts: Texts,
        tokenizer: PreTrainedTokenizerFast,
        metric: Metric,
    ) -> None:
        """Raises BlipstreamError if the metric needs a package that is not installed."""
        self._data, self._images, self._texts, self._tokenizer, self._metric = data, images, texts, tokenizer, metric
        self._pairs = texts.pairs(data)
        if metric == "cider":
            _cider([["a"], ["b"]], ["a", "b"])

    def is_better(self, new: dict[str, float], old: dict[str, float]) -> bool:
        """Whether metrics are better than those of the best so far, of which there may be none. Loss decides ties."""
        if not old or self._metric == "loss":
            return not old or new["loss"] < old["loss"]
        return (new[self._metric], -new["loss"]) > (old[self._metric], -old["loss"])

    @torch.no_grad()
    def __call__(self, trained: Trained) -> dict[str, float]:
        """The loss a token, without smoothing, and the metric."""
        trained.captioner.eval()
        total, tokens = 0.0, 0
        for batch in in_order(self._pairs, self._images, self._texts, BATCH):
            batch = type(batch)(*(each.to(trained.captioner.device) for each in batch))
            batch = batch._replace(images=batch.images.float())
            number = int((batch.labels != IGNORED).sum())
            total += float(trained.loss(batch, 0.0)) * number
            tokens += number
        metrics = {"loss": total / tokens}
        if self._metric != "loss":
            captions = self._captions(trained)
            references = [self._data.captions[each] for each in sorted(self._data.captions)]
            if self._metric == "exact":
                right = sum(each in found for each, found in zip(captions, references, strict=True))
                metrics["exact"] = right / len(captions)
            else:
                metrics["cider"] = _cider(references, captions)
        trained.captioner.train()
        return metrics

    def _captions(self, trained: Trained) -> list[str]:
        """A greedy caption of each image."""
        digests, captions = sorted(self._data.captions), []
        model, prompt = trained.captioner, self._texts.prompt_ids
        longest = min(len(prompt) + NEW_TOKENS, model.config.text_config.max_position_embeddings)
        for start in range(0, len(digests), BATCH):
            some = digests[start : start + BATCH]
            images = torch.as_tensor(self._images.get(some)).to(model.device).float()
            ids = torch.tensor([prompt] * len(some), device=model.device)
            output = model.text_decoder.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                encoder_hidden_states=images if images.ndim == 3 else trained.embed(images),
                eos_token_id=self._texts.end,
                pad_token_id=self._texts.pad,
                do_sample=False,
                max_length=longest,
            )
            new = output[:, len(prompt) :].tolist()
            captions += self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return captions


def _cider(references: Sequence[Sequence[str]], captions: Sequence[str]) -> float:
    """CIDEr by pycocoevalcap, over plain words in lower case: its own tokenizer needs Java, and differs a little."""
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as exc:
        raise BlipstreamError(f"--metric cider needs pycocoevalcap: pip install pycocoevalcap ({exc})") from exc
    score, _ = Cider().compute_score(
        {number: [_words(each) for each in several] for number, several in enumerate(references)},
        {number: [_words(each)] for number, each in enumerate(captions)},
    )
    return float(score)


def _words(text: str) -> str:
    return " ".join(TOKEN.findall(text.lower()))
