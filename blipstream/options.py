# SPDX-License-Identifier: Apache-2.0
"""The decoding options of a request. Each is declared once, here, with its type, default, range and meaning.

`make configs` writes the rest from this declaration: Triton's model configs, the client's options and the table in the
documents.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from blipstream.errors import InvalidInput

MAX_BEAMS = 10
MAX_CAPTIONS = 10
MAX_PROMPT = MAX_TEXT = 4096  # characters: more than any model has positions, and a limit on the tokenizer's work
MAX_TEXTS = 1000  # of a request, for all of its images together
SHOWN = 40  # characters of a name that an error repeats
SAMPLING, BEAM_SEARCH = "do_sample", "num_beams above 1"  # what some options have a meaning with only
DATA_TYPES = {str: "BYTES", bool: "BOOL", int: "INT32", float: "FP32"}  # of the input tensors, in Triton's words


@dataclass(frozen=True)
class Option:
    """What is declared of an option beside its type and its default."""

    meaning: str  # for documents and --help
    low: float = -math.inf
    high: float | str = math.inf  # a number, or the name of another option
    excludes_low: bool = False
    only_with: str = ""  # SAMPLING, BEAM_SEARCH, or nothing
    data_type: str = ""  # where DATA_TYPES does not say it
    other_names: tuple[str, ...] = ()  # what transformers' `generate` calls it, where that differs

    def allowed(self, high: str) -> str:
        """The range in words; `high` is how its upper end is to be shown."""
        if self.excludes_low:
            return f"above {self.low} and at most {high}"
        return f"at least {self.low}" if self.high == math.inf else f"between {self.low} and {high}"


@dataclass(frozen=True)
class DecodingOptions:
    """How the captions of one image are generated.

    Names and meanings are those of transformers' `generate`, except where `other_names` says what it calls them.
    Raises InvalidInput where a value is out of its range or contradicts another.
    """

    # fmt: off
    prompt: Annotated[str, Option("The caption begins with these words.")] = ""
    include_prompt: Annotated[bool, Option("Whether the returned text includes the prompt.")] = True
    adapter: Annotated[str, Option("The adapter to caption with, such as a language. Empty: none.")] = ""
    max_tokens: Annotated[int, Option(
        "Tokens to generate at most. The end token counts, the prompt does not.",
        low=1, other_names=("max_new_tokens", "max_length"),
    )] = 30
    min_tokens: Annotated[int, Option(
        "Tokens to generate before the caption may end.",
        low=0, high="max_tokens", other_names=("min_new_tokens", "min_length"),
    )] = 0
    num_captions: Annotated[int, Option(
        "Captions to return, best first. Without do_sample, at most num_beams.",
        low=1, high=MAX_CAPTIONS, other_names=("num_return_sequences",),
    )] = 1
    repetition_penalty: Annotated[float, Option(
        "Above 1, tokens that have occurred become less likely.", low=0.01, high=100,
    )] = 1.0
    no_repeat_ngram_size: Annotated[int, Option("No sequence of this many tokens occurs twice. 0: off.", low=0)] = 0

    num_beams: Annotated[int, Option("Beams to search with. 1: no beam search.", low=1, high=MAX_BEAMS)] = 1
    length_penalty: Annotated[float, Option(
        "Scores are divided by length to this power: above 0 favours long captions.",
        low=-10, high=10, only_with=BEAM_SEARCH,
    )] = 1.0
    early_stopping: Annotated[bool, Option(
        "Stop as soon as num_beams captions are complete.", only_with=BEAM_SEARCH,
    )] = False

    do_sample: Annotated[bool, Option("Draw each token at random instead of taking the likeliest.")] = False
    temperature: Annotated[float, Option(
        "Below 1, likely tokens become likelier; above 1, less likely.", low=0.01, high=100, only_with=SAMPLING,
    )] = 1.0
    top_k: Annotated[int, Option("Draw from the k likeliest tokens. 0: from all.", low=0, only_with=SAMPLING)] = 0
    top_p: Annotated[float, Option(
        "Draw from the likeliest tokens that together have at least this probability.",
        low=0, high=1, excludes_low=True, only_with=SAMPLING,
    )] = 1.0
    seed: Annotated[int, Option(
        "The same seed gives the same captions.",
        low=-(2**63), high=2**63 - 1, only_with=SAMPLING, data_type="INT64",
    )] = 0
    # fmt: on

    def __post_init__(self) -> None:
        for fault in faults(vars(self)):
            raise InvalidInput(fault.sentence)

    @property
    def strategy(self) -> Literal["greedy", "sample", "beam"]:
        """How tokens are chosen."""
        return "sample" if self.do_sample else "beam" if self.num_beams > 1 else "greedy"

    @property
    def max_rows(self) -> int:
        """Captions that grow at once."""
        return self.num_captions if self.do_sample else self.num_beams

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any], defaults: "OptionDefaults | None" = None) -> "DecodingOptions":
        """Options from the tensors of one image, each numpy [1]; absent ones have their default.

        Raises InvalidInput.
        """
        return (defaults or OptionDefaults()).options({name: _scalar(name, value) for name, value in tensors.items()})

    @classmethod
    def from_rows(
        cls,
        tensors: Mapping[str, Any],
        images: int,
        positions: int | None = None,
        defaults: "OptionDefaults | None" = None,
    ) -> "list[DecodingOptions]":
        """Options for each image of a request, from tensors [images, 1].

        Raises InvalidInput, also where an image's options need more than the model's `positions`.
        """
        options = [cls.from_tensors(row, defaults) for row in _rows(tensors, images)]
        counts = sorted({each.num_captions for each in options})
        if len(counts) > 1:  # the output tensors have the same number of captions for every image
            raise InvalidInput(
                f"num_captions must be the same for all images of a request, not {' and '.join(map(str, counts))}"
            )
        if positions is not None:
            for each in options:
                each.check_fits(positions)
        return options

    def max_length(self, prompt_tokens: int) -> int:
        """Positions that a caption may fill; the last generated token is never fed back."""
        return prompt_tokens + self.max_tokens - 1

    def check_fits(self, positions: int, prompt_tokens: int | None = None) -> None:
        """Raise InvalidInput where prompt and max_tokens need more than `positions`.

        Before the prompt is tokenized, `prompt_tokens` is None, which counts as one: the start token.
        """
        if self.max_length(prompt_tokens or 1) > positions:
            raise InvalidInput(
                f"prompt and max_tokens together must fit {positions} positions, but the prompt takes "
                f"{prompt_tokens or 'at least 1'} and max_tokens is {self.max_tokens}: shorten one of them"
            )


GRADIENT = "gradient"
METHODS = ("attention", "rollout", GRADIENT)  # of a heatmap
MAX_GRADIENTS = 48  # tokens of a caption that is explained by gradients: the work grows with the square of its length
MAX_REQUEST_GRADIENTS = 10 * MAX_GRADIENTS  # of all captions of a request


@dataclass(frozen=True)
class ExplainOptions:
    """How a caption is explained: which one of several, and what its heatmaps are made of.

    Raises InvalidInput where a value is out of every model's range.
    """

    # fmt: off
    caption_index: Annotated[int, Option(
        "Which of num_captions captions to explain. 0: the best.", low=0, high=MAX_CAPTIONS - 1,
    )] = 0
    layer: Annotated[int, Option("The layer of the text decoder, from 0 on. -1: the mean of all.", low=-1)] = -1
    head: Annotated[int, Option("The attention head, from 0 on. -1: the mean of all.", low=-1)] = -1
    method: Annotated[str, Option("What heatmaps are made of: attention, rollout or gradient.")] = METHODS[0]
    # fmt: on

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            shown = self.method if len(self.method) <= SHOWN else f"{self.method[:SHOWN]}..."
            raise InvalidInput(f"method must be one of {', '.join(METHODS)}, not {shown!r}")
        if not 0 <= self.caption_index < MAX_CAPTIONS:
            raise InvalidInput(f"caption_index must be between 0 and {MAX_CAPTIONS - 1}, not {self.caption_index}")

    @classmethod
    def from_rows(cls, tensors: Mapping[str, Any], images: int) -> "list[ExplainOptions]":
        """Options for each image of a request, from tensors [images, 1]. Raises InvalidInput."""
        rows = _rows(tensors, images)
        return [cls(**{name: _scalar(name, value) for name, value in row.items()}) for row in rows]

    def check_fits(
        self, num_layers: int, num_heads: int, num_captions: int, length: int, *, is_given: bool = False
    ) -> None:
        """Raise InvalidInput if the decoder has no such layer or head, or the request has no such caption.

        `length` is how many tokens the caption may have, with its prompt; or, if it `is_given`, how many it has.
        """
        for name, value, count in (("layer", self.layer, num_layers), ("head", self.head, num_heads)):
            check_part(name, value, count, f"this model's text decoder has {count}")
        if self.caption_index >= num_captions:
            raise InvalidInput(
                f"caption_index must be below num_captions, which is {num_captions}, not {self.caption_index}"
            )
        if self.method == GRADIENT and length > MAX_GRADIENTS:
            has, remedy = ("has", "shorten it") if is_given else ("may have", "lower max_tokens or shorten the prompt")
            raise InvalidInput(
                f"gradient is for captions of at most {MAX_GRADIENTS} tokens, and this one {has} {length}: {remedy}, "
                "or take another method"
            )


@dataclass(frozen=True)
class MatchingOptions:
    """How texts are read that are compared with an image, or embedded."""

    truncate: Annotated[bool, Option("Cut texts that are too long for the model, instead of refusing them.")] = False


ADAPTER = "adapter"  # the option that says by which weights, and not how
NUM_CAPTIONS = "num_captions"  # the option whose place `rerank` takes while captions are generated


@dataclass(frozen=True)
class RerankOptions:
    """Which of an image's captions come back, by how well they match it. Raises InvalidInput as `DecodingOptions`."""

    # fmt: off
    rerank: Annotated[int | None, Option(
        "Captions to generate, of which matching chooses. Without do_sample, at most num_beams.",
        low=1, high=MAX_CAPTIONS,
    )] = None  # as many as come back
    min_match: Annotated[float, Option(
        "Drop captions that match the image with a lower probability.", low=0, high=1,
    )] = 0.0
    # fmt: on
    num_captions: int = 1  # that come back, at most

    def __post_init__(self) -> None:
        for name, option in (("min_match", RERANK_OPTIONS["min_match"]), (NUM_CAPTIONS, OPTIONS[NUM_CAPTIONS])):
            if fault := _out_of_range(name, option, vars(self)):
                raise InvalidInput(fault.sentence)

    @classmethod
    def from_rows(
        cls, tensors: Mapping[str, Any], images: int, defaults: "OptionDefaults | None" = None
    ) -> "list[RerankOptions]":
        """Options for each image of a request, from tensors [images, 1]. Raises InvalidInput.

        What `rerank` and num_captions ask for together is left to `RequestOptions`.
        """
        known = {name: tensors[name] for name in (*RERANK_OPTIONS, NUM_CAPTIONS) if name in tensors}
        default = {NUM_CAPTIONS: (defaults or OptionDefaults()).values.get(NUM_CAPTIONS, DEFAULTS[NUM_CAPTIONS])}
        rows = _rows(known, images)
        return [cls(**(default | {name: _scalar(name, value) for name, value in row.items()})) for row in rows]


def _declared(options: type) -> dict[str, Option]:
    """What a dataclass of options says of each."""
    hints = get_type_hints(options, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


TYPES = get_type_hints(DecodingOptions)
DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(DecodingOptions)}
OPTIONS = _declared(DecodingOptions)
OPTION_NAMES = tuple(OPTIONS)
MATCHING_TYPES = get_type_hints(MatchingOptions)
MATCHING_OPTIONS = _declared(MatchingOptions)
MATCHING_OPTION_NAMES = tuple(MATCHING_OPTIONS)
NUMBERS = {name: option for name, option in OPTIONS.items() if TYPES[name] in (int, float)}
ONLY_WITH = {
    condition: [name for name, option in OPTIONS.items() if option.only_with == condition]
    for condition in (SAMPLING, BEAM_SEARCH)
}
EXPLAIN_TYPES = get_type_hints(ExplainOptions)
EXPLAIN_DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(ExplainOptions)}
EXPLAIN_OPTIONS = _declared(ExplainOptions)
RERANK_OPTIONS = _declared(RerankOptions)
RERANK_TYPES = {"rerank": int, "min_match": float}
RERANK_DEFAULTS: dict[str, Any] = {"rerank": NUM_CAPTIONS, "min_match": RerankOptions.min_match}  # as documents say it
GIVEN_CAPTION = "given_caption"  # a caption that is not generated, but comes with the request
INPUT_NAMES = ("image", "resize_mode", *OPTION_NAMES)  # the inputs of the model `caption`
MATCH_NAMES = ("image", "resize_mode", "text", *MATCHING_OPTION_NAMES)  # the inputs of the model `match`
EXPLAINED_TEXT = "explained_text"  # what the models behind `explain_match` call its text
MATCH_MAPS = ("layer", "head")  # options of heatmaps that `explain_match` has, too
EXPLAIN_MATCH_NAMES = ("image", "resize_mode", "text", *MATCH_MAPS)  # the inputs of the model `explain_match`
EXPLAIN_NAMES = (GIVEN_CAPTION, *EXPLAIN_OPTIONS)  # the inputs that `explain` has beside those of `caption`
RESIZE_MODES = ("stretch", "center_crop", "letterbox")  # the values of resize_mode; the first is built in
# The quickest caption, whatever the defaults are: what health checks ask for
PROBE: dict[str, Any] = {
    "prompt": "", "include_prompt": True, "adapter": "", "max_tokens": 1, "min_tokens": 0,
    "do_sample": False, "num_captions": 1, "num_beams": 1,
}  # fmt: skip
PROBE_TEXT = "a"  # the same of a match: every vocabulary has it


class Fault(NamedTuple):
    """What is wrong with the values of options."""

    names: tuple[str, ...]  # of the options that it lies between
    sentence: str
    is_idle: bool = False  # the option only has no meaning beside the others


def faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """All that is wrong with the values of all options: ranges first, then the strategy, then what depends on it.

    Each fault is looked for when it is asked for. So whoever mends one in `values` meanwhile gets those that are left.
    """
    if len(values["prompt"]) > MAX_PROMPT:
        yield Fault(("prompt",), f"prompt must have at most {MAX_PROMPT:,} characters, not {len(values['prompt']):,}")
    for name, option in NUMBERS.items():
        if fault := _out_of_range(name, option, values):
            yield fault
    if values["do_sample"] and values["num_beams"] > 1:
        sentence = "do_sample and num_beams above 1 exclude each other: ask for one of them"
        yield Fault(("do_sample", "num_beams"), sentence)
    if not values["do_sample"] and values["num_captions"] > values["num_beams"]:
        yield Fault(
            ("num_captions", "num_beams"),
            f"num_captions must be at most num_beams, which is {values['num_beams']}, not {values['num_captions']}: "
            "raise num_beams, or set do_sample",
        )
    for condition, is_met in ((SAMPLING, values["do_sample"]), (BEAM_SEARCH, values["num_beams"] > 1)):
        for name in () if is_met else ONLY_WITH[condition]:
            if values[name] != DEFAULTS[name]:
                sentence = f"{name} has a meaning only with {condition}: set that, or leave it out"
                yield Fault((name,), sentence, is_idle=True)


def _out_of_range(name: str, option: Option, values: Mapping[str, Any]) -> Fault | None:
    value, high = values[name], option.high
    if isinstance(high, str):
        high = values[high]
    if option.low <= value <= high and not (option.excludes_low and value == option.low):  # NaN is in no range
        return None
    names = (name, option.high) if isinstance(option.high, str) else (name,)
    shown = " ".join([str(high), *(f"({other})" for other in names[1:])])
    return Fault(names, f"{name} must be {option.allowed(shown)}, not {value}")


def agreed(
    sent: Mapping[str, Any],
    defaults: Mapping[str, Any],
    fixed: frozenset[str] = frozenset(),
    *,
    keeps_idle: bool = False,
) -> dict[str, Any]:
    """The value of each option, for a request that sent some of them. Whoever sends an option has the last word.

    What was sent stands. A default stands, too, unless it contradicts what was sent or has no meaning beside it. Then
    the built-in default takes its place. A default that is `fixed` gives way only if it has no meaning. With
    `keeps_idle`, what has no meaning stays.
    """
    values = {**DEFAULTS, **defaults, **sent}
    for fault in faults(values):
        for name in () if fault.is_idle and keeps_idle else fault.names:
            if name not in sent and (fault.is_idle or name not in fixed):
                values[name] = DEFAULTS[name]
    return values


@dataclass(frozen=True)
class OptionDefaults:
    """What holds for requests that leave options out, where it is not what is built in."""

    values: Mapping[str, Any] = field(default_factory=dict)  # by option; those that are fixed, too
    fixed: frozenset[str] = frozenset()  # options that requests cannot change
    resize_mode: str = ""  # empty: the built-in one
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)  # where each was set, for messages

    def options(self, sent: Mapping[str, Any]) -> DecodingOptions:
        """The options of a request that sent some of them. Raises InvalidInput."""
        if not self.values:
            return DecodingOptions(**sent)
        for name in self.fixed & sent.keys():
            self.check_fixed(name, sent[name])
        sent = {name: value for name, value in sent.items() if name not in self.fixed}
        values = agreed(sent, self.values, self.fixed)
        try:
            return DecodingOptions(**values)
        except InvalidInput:
            raise InvalidInput(self._blame(self._fault(values, sent), sent)) from None

    def only(self, name: str) -> "OptionDefaults":
        """The same for one option; the others have their built-in values."""
        return replace(self, values={each: value for each, value in self.values.items() if each == name})

    def check_fits(self, positions: int) -> None:
        """Raise InvalidInput if the defaults need more than a model's `positions`."""
        if self.values:
            self.options({}).check_fits(positions)

    def check_fixed(self, name: str, value: object) -> None:
        """Raise InvalidInput if an option is fixed at another value."""
        fixed = self.resize_mode if name == "resize_mode" else self.values.get(name)
        if name in self.fixed and value != fixed:
            raise InvalidInput(f"{name} is fixed at {_shown(fixed)} on this server: leave it out")

    def allowed(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """As many of the `wanted` options as a request may send beside those that are fixed."""
        sent: dict[str, Any] = {}
        for name, value in wanted.items():
            with suppress(InvalidInput):
                self.options(sent | {name: value})
                sent[name] = value
        return sent

    def _fault(self, values: Mapping[str, Any], sent: Mapping[str, Any]) -> Fault:
        """The first fault of the values that were agreed.

        A default that has given way may have permitted more than what is built in. Then it is the limit to name.
        """
        first = next(faults(values))
        given_way = [name for name in first.names if name in self.values and name not in sent]
        larger = {name: self.values[name] for name in given_way if self.values[name] > values[name]}
        return next((each for each in faults({**values, **larger}) if each.names == first.names), first)

    def _blame(self, fault: Fault, sent: Mapping[str, Any]) -> str:
        """The sentence of a fault, with what is fixed of the options that it lies between."""
        fixed = [name for name in fault.names if name in self.fixed]
        if not fixed:
            return fault.sentence
        others = " and ".join([name for name in fault.names if name in sent] or sent)
        values = " and ".join(f"{name} is fixed at {_shown(self.values[name])}" for name in fixed)
        return f"{fault.sentence.partition(': ')[0]}, and {values} on this server: leave {others} out"


def nearest(name: str, names: tuple[str, ...]) -> str | None:
    """Which of the names is meant: what transformers calls so, or what is written almost so."""
    for option, declared in OPTIONS.items():
        if name in declared.other_names:
            return option if option in names else None
    return next(iter(get_close_matches(name[:SHOWN], names, 1)), None)


def data_type(name: str) -> str:
    """The data type of an option's input tensor, in the words of Triton's protocol."""
    options = OPTIONS | EXPLAIN_OPTIONS | RERANK_OPTIONS | MATCHING_OPTIONS
    types = TYPES | EXPLAIN_TYPES | RERANK_TYPES | MATCHING_TYPES
    return options[name].data_type or DATA_TYPES[types[name]]


class RequestOptions(NamedTuple):
    """All that a request says of its images, each a list with an entry for each of them."""

    decoding: list[DecodingOptions]
    given: list[str | None]  # captions that are not to be generated
    explain: list[ExplainOptions]

    @classmethod
    def from_rows(
        cls,
        tensors: Mapping[str, Any],
        images: int,
        positions: int | None = None,
        defaults: OptionDefaults | None = None,
    ) -> "RequestOptions":
        """From tensors [images, 1]; those that are no options are left alone. Raises InvalidInput."""
        given = given_captions(tensors, images)
        if any(given):  # all other options say how to generate captions
            positions, defaults = None, defaults and defaults.only(ADAPTER)
        decoding = _decoding(tensors, images, positions, defaults)
        RerankOptions.from_rows(tensors, images)  # raises InvalidInput
        explain = {name: tensors[name] for name in EXPLAIN_OPTIONS if name in tensors}
        return cls(decoding, given, ExplainOptions.from_rows(explain, images))

    def check_fits(self, num_layers: int, num_heads: int) -> None:
        """Raise InvalidInput if a text decoder cannot explain so; how long prompts are is not known yet."""
        captions = []
        for options, given, explain in zip(*self, strict=True):
            captions.append((explain, 1 if given else options.max_length(1)))
            explain.check_fits(num_layers, num_heads, options.num_captions, captions[-1][1])
        check_gradients(captions)


def _decoding(
    tensors: Mapping[str, Any], images: int, positions: int | None, defaults: OptionDefaults | None
) -> list[DecodingOptions]:
    """How the captions of each image are generated. If there is `rerank`, it says how many, and not num_captions.

    Raises InvalidInput, also if num_captions is above `rerank`.
    """
    options = {name: tensors[name] for name in OPTION_NAMES if name in tensors}
    if "rerank" not in tensors:
        return DecodingOptions.from_rows(options, images, positions, defaults)
    returned = {NUM_CAPTIONS: options[NUM_CAPTIONS]} if NUM_CAPTIONS in options else {}
    try:
        decoding = DecodingOptions.from_rows(options | {NUM_CAPTIONS: tensors["rerank"]}, images, positions, defaults)
    except InvalidInput as error:
        raise InvalidInput(str(error).replace(NUM_CAPTIONS, "rerank")) from None
    allowed = replace(OPTIONS[NUM_CAPTIONS], high="rerank")
    for each, row in zip(decoding, _rows(returned, images), strict=True):
        for name, count in row.items():
            if fault := _out_of_range(name, allowed, {name: _scalar(name, count), "rerank": each.num_captions}):
                raise InvalidInput(fault.sentence)
    return decoding


def given_captions(tensors: Mapping[str, Any], images: int) -> list[str | None]:
    """The caption that a request gives for each image, or None, from tensors [images, 1].

    Raises InvalidInput, also where options say how to generate one.
    """
    if GIVEN_CAPTION not in tensors:
        return [None] * images
    for name in (*OPTION_NAMES, *RERANK_OPTIONS):
        if name in tensors and name != ADAPTER:
            raise InvalidInput(f"{name} has no meaning beside a given caption: leave one of them out")
    captions: list[str | None] = []
    for row in _rows({GIVEN_CAPTION: tensors[GIVEN_CAPTION]}, images):
        caption: str = _scalar(GIVEN_CAPTION, row[GIVEN_CAPTION])
        if len(caption) > MAX_PROMPT:
            raise InvalidInput(f"a given caption must have at most {MAX_PROMPT:,} characters, not {len(caption):,}")
        if not caption.strip():
            raise InvalidInput("a given caption must have a word, and this one has none: give one, or leave it out")
        captions.append(caption)
    return captions


def check_part(name: str, value: int, count: int, why: str) -> None:
    """Raise InvalidInput, and say why, unless a layer or a head is one of so many, or -1."""
    if not -1 <= value < count:
        raise InvalidInput(f"{name} must be between 0 and {count - 1}, or -1 for the mean of all, not {value}: {why}")


def check_gradients(captions: Iterable[tuple[ExplainOptions, int]]) -> None:
    """Raise InvalidInput if gradients would take too long for all captions of a request, given their tokens at most."""
    tokens = sum(length for explain, length in captions if explain.method == GRADIENT)
    if tokens > MAX_REQUEST_GRADIENTS:
        raise InvalidInput(
            f"gradient is for requests of at most {MAX_REQUEST_GRADIENTS} tokens in all captions, and this one may "
            f"have {tokens:,}: send several, or take another method"
        )


def check_explained_tokens(tokens: int) -> None:
    """Raise InvalidInput if a request has too many tokens in all texts that are to be explained."""
    if tokens > MAX_REQUEST_GRADIENTS:
        raise InvalidInput(
            f"a request must have at most {MAX_REQUEST_GRADIENTS} tokens in all texts that it explains, "
            f"not {tokens:,}: send several"
        )


def check_num_texts(images: int, texts: int) -> None:
    """Raise InvalidInput if a request has too many texts, so many for each image."""
    if images * texts > MAX_TEXTS:
        raise InvalidInput(f"a request must have at most {MAX_TEXTS:,} texts, not {images * texts:,}: send several")


def _rows(tensors: Mapping[str, Any], images: int) -> Iterator[dict[str, Any]]:
    """The tensors [1] of each image, from tensors [images, 1] of a request. Raises InvalidInput."""
    if not images:
        raise InvalidInput("a request must have an image, and this one has none: send at least one row")
    for name, rows in tensors.items():
        if len(rows) != images:
            raise InvalidInput(f"{name} must have a row for each image, {images}, not {len(rows)}")
    for row in range(images):
        yield {name: rows[row] for name, rows in tensors.items()}


def _shown(value: object) -> str:
    """A value in a sentence, for people who write Python, JSON or a command line."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _scalar(name: str, tensor: Any) -> Any:  # noqa: ANN401
    value = tensor.reshape(-1)[0]
    if tensor.dtype == "float32":
        return float(str(value))  # the shortest decimal: 0.01 as its sender wrote it, not 0.009999999776482582
    if not isinstance(value, bytes):
        return value.item()
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{name} must be UTF-8 text: {exc.reason} at byte {exc.start}") from exc
