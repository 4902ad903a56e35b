"""Learn2PD: a trained filter says which tokens are final; and its end-of-text cut (2509.25188)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from dllm.checks import ConfigError, check_probability, check_whole
from dllm.decoding.state import Fields
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import DeviceCanvas, State, Verdict, Vocabulary
from dllm.samplers.rule import CommitRuleBase, Selection, quota, top
from dllm.tensors import read_tensors, write_tensors

FORMAT = "dllm-filter-1"
NAMES = ("in.weight", "in.bias", "out.weight", "out.bias")


@dataclass(frozen=True)
class Learn2PD(CommitRuleBase):
    """Commit candidates the filter accepts with more than `threshold`, and the k most confident, k
    LLaDA's quota for `steps` (None: one).

    filter: a file that `save_filter` wrote, for one block length. It sees the probability of the
    most likely token at every position of the window, committed ones included; what is missing of a
    short last block, and positions the engine did not fill, count as 1. A longer window is a
    ConfigError. The default threshold is the paper's.
    """

    paper = "Learn2PD, arXiv 2509.25188"
    filter: str
    threshold: float = 0.96
    steps: int | None = None
    layers: dict[str, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)
        check_whole("steps", self.steps, 1, none=True)
        object.__setattr__(self, "layers", load_filter(self.filter))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"best", "decoded"})

    def select(self, view: Candidates) -> Selection:
        block = self.layers["in.weight"].shape[1]
        if view.width > block:
            raise ConfigError(
                f"filter={self.filter!r}: made for blocks of {block} tokens, got a window of "
                f"{view.width}"
            )
        # float64: rounding must not make a row's choice depend on the size of its batch
        layers = {name: layer.to(view.conf.device).double() for name, layer in self.layers.items()}
        seen = confidences(view, block).double()
        hidden = linear(seen, layers["in.weight"], layers["in.bias"]).relu()
        accepts = (
            linear(hidden, layers["out.weight"], layers["out.bias"]).sigmoid() > self.threshold
        )
        offset = (view.pos - view.start[:, None]).where(view.valid, 0)
        accepted = view.valid & accepts.gather(1, offset)
        return Selection(accepted | top(view, quota(view, self.steps)))


def confidences(view: Candidates, block: int) -> Tensor:
    """[B, block] what a filter sees: the probability of the most likely token by offset in the
    window, 1 where nothing was computed. Needs "best" and "decoded".
    """
    assert view.best_conf is not None
    assert view.decoded is not None
    decoded = view.decoded
    seen = view.best_conf.new_ones(len(view.pos), block)
    seen = by_offset(view, seen, view.pos, view.valid, view.best_conf)
    return by_offset(view, seen, decoded.pos, decoded.valid, decoded.conf)


def by_offset(view: Candidates, base: Tensor, pos: Tensor, valid: Tensor, value: Tensor) -> Tensor:
    """`base` [B, block] with `value` [B, K] where `valid` at the offsets of `pos` in the window."""
    block = base.shape[1]
    offset = (pos - view.start[:, None]).where(valid, block)  # one more column takes the padding
    return pad(base, (0, 1)).scatter(1, offset, value)[:, :block]


@dataclass(frozen=True)
class EndOfText:
    """Drop everything behind the first committed end token, and behind the masked position that
    proposes one most confidently, with at least `threshold`; that position itself stays to be
    committed.

    The paper waits until an end of text is decoded; so sure a proposal is about to be. The released
    code cuts at the most confident proposal whatever its probability: threshold 0. The default is
    that of the paper's filter. stop_ids: the end tokens, the model's where left out.
    """

    paper = "Learn2PD (EoTP), arXiv 2509.25188"
    fields: ClassVar[Fields] = {}
    threshold: float = 0.96
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def whole_row(self) -> bool:
        return False

    def bind(self, vocabulary: Vocabulary) -> EndOfText:
        return replace(self, stop_ids=tuple(vocabulary.stop_ids))

    def check(self, view: Candidates, canvas: DeviceCanvas, state: State) -> Verdict:
        ends = torch.isin(canvas.ids, canvas.ids.new_tensor(self.stop_ids))
        ends &= canvas.generated & canvas.known
        behind = torch.where(ends, canvas.pos + 1, canvas.length[:, None]).amin(1)
        # Still masked: another token may have been committed where the end was proposed.
        pos = view.pos.where(view.valid, 0)
        sure = view.valid & view.ends & (view.conf >= self.threshold) & canvas.masked.gather(1, pos)
        best = view.rank(sure.float(), *view.certainty) == 0
        cut = torch.where(sure & best, view.pos + 1, canvas.length[:, None])
        return Verdict(length=torch.minimum(behind, cut.amin(1)))


def save_filter(path: str | Path, layers: Mapping[str, Tensor]) -> None:
    """Write a filter: "in.weight" [H, W], "in.bias" [H], "out.weight" [W, H], "out.bias" [W], W the
    block length (the layout of `torch.nn.Linear`); ValueError where they do not fit together.
    """
    block = check_layers(layers, f"filter={str(path)!r}")
    tensors = {name: layers[name].detach().float().cpu().contiguous() for name in NAMES}
    write_tensors(path, tensors, {"format": FORMAT, "block_length": str(block)})


def load_filter(path: str | Path) -> dict[str, Tensor]:
    """The layers of a filter that `save_filter` wrote; ValueError if the file is none."""
    name = f"filter={str(path)!r}"
    layers, metadata = read_tensors(path, NAMES, format=FORMAT, called=name)
    block = check_layers(layers, name)
    if metadata.get("block_length") != str(block):
        raise ValueError(
            f"{name}: block_length is {metadata.get('block_length')!r}, but its layers are for "
            f"{block}"
        )
    return layers


def check_layers(layers: Mapping[str, Tensor], name: str) -> int:
    """The block length of a filter's layers; ValueError unless they fit together."""
    if set(layers) != set(NAMES):
        raise ValueError(f"{name}: holds {sorted(layers)}, expected {sorted(NAMES)}")
    shapes = {key: list(layer.shape) for key, layer in layers.items()}
    if len(shapes["in.weight"]) != 2 or 0 in shapes["in.weight"]:
        raise ValueError(f"{name}: 'in.weight' has shape {shapes['in.weight']}, expected two sizes")
    hidden, block = shapes["in.weight"]
    expected = {"in.bias": [hidden], "out.weight": [block, hidden], "out.bias": [block]}
    for key, shape in expected.items():
        if shapes[key] != shape:
            raise ValueError(f"{name}: {key!r} has shape {shapes[key]}, expected {shape}")
    if not all(layer.is_floating_point() for layer in layers.values()):
        raise ValueError(f"{name}: expected weights that are floating-point numbers")
    if not all(layer.isfinite().all() for layer in layers.values()):
        raise ValueError(f"{name}: expected finite weights")
    return block
