"""One config.json: its values, each read with a type and a range, and what is said of a bad one.

Every complaint names the key, the value, the family it was read as and the file. Knows no family.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dllm.errors import LoadError

LARGEST = 2**24  # of any size: far more than a model has, and products of two still fit an int64
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 100
brief = _brief.repr  # a value in a message, whatever its size


class SpecialIds(NamedTuple):
    """Mask, end of sequence, padding and (where there is one) end of turn."""

    mask: int
    eos: int
    pad: int
    eot: int | None


@dataclass(frozen=True, slots=True)
class Released:
    """The special ids of a family's released checkpoints, and the vocabularies they belong to."""

    ids: SpecialIds
    vocab_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """The values of one config.json, read as those of `family`."""

    values: Mapping[str, Any]
    family: str
    source: str

    def error(self, problem: str) -> LoadError:
        return LoadError(f"{self.source}: {problem} (read as family {self.family!r})")

    def need(self, key: str) -> Any:
        if key not in self.values:
            raise self.error(f"the key {key!r} is missing; it has no default")
        return self.values[key]

    def integer(self, key: str, minimum: int = 1) -> int:
        value = self.need(key)
        if type(value) is not int or not minimum <= value <= LARGEST:
            raise self.error(
                f"{key} is {brief(value)}, expected an integer >= {minimum}, at most {LARGEST}"
            )
        return value

    def number(self, key: str) -> float:
        value = self.need(key)
        if type(value) not in (int, float) or not 0 < value <= 1e30:  # NaN is not, nor infinity
            raise self.error(f"{key} is {brief(value)}, expected a number > 0")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.need(key)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {brief(value)}, expected true or false")
        return value

    def expect(self, key: str, *known: object, optional: bool = False) -> None:
        """Insist on one of the implemented values; an `optional` key may also be absent."""
        if optional and key not in self.values:
            return
        value = self.need(key)
        if not any(value == k and type(value) is type(k) for k in known):
            choices = " or ".join(repr(k) for k in known)
            raise self.error(f"{key} is {brief(value)}, but only {choices} is implemented")

    def rope_theta(self) -> float:
        """RoPE base, at top level or (transformers 5) inside `rope_parameters`; plain RoPE only."""
        places = [self]
        for key in ("rope_parameters", "rope_scaling"):
            nested = self.values.get(key)
            if isinstance(nested, Mapping):
                places.append(Config(nested, self.family, f"{self.source}, {key}"))
            elif nested is not None:
                raise self.error(f"{key} is {brief(nested)}, expected an object or null")
        for place in places:
            place.expect("rope_type", "default", optional=True)
            place.expect("type", "default", optional=True)
            place.expect("partial_rotary_factor", 1, 1.0, optional=True)
        holders = [place for place in places if "rope_theta" in place.values] or [self]
        bases = {place.number("rope_theta") for place in holders}
        if len(bases) > 1:
            raise self.error(f"rope_theta has several values: {sorted(bases)}")
        return bases.pop()

    def head_dim(self, width: str, heads: str) -> int:
        """Head size where the architecture defines it as width / heads."""
        if self.integer(width) % self.integer(heads):
            raise self.error(
                f"{width}={self.values[width]} is not a multiple of {heads}={self.values[heads]}"
            )
        return self.integer(width) // self.integer(heads)

    def special_ids(self, released: Released | None, vocab_size: int) -> SpecialIds:
        """config.json decides; a key it leaves out (or null) takes the family's released id.

        The released ids count only for a vocabulary of a released size: the same network with other
        tokens has to name its own. Only the end of turn may be absent altogether.
        """
        ours = released is not None and vocab_size in released.vocab_sizes

        def read(key: str, default: int | None) -> int | None:
            if self.values.get(key) is None:
                return default if ours else None
            token = self.integer(key, minimum=0)
            if token >= vocab_size:
                raise self.error(f"{key} is {token}, outside the vocabulary [0, {vocab_size})")
            return token

        def need(key: str, default: int | None) -> int:
            token = read(key, default)
            if token is not None:
                return token
            if released is None:
                raise self.error(f"the key {key!r} is missing; it has no default")
            sizes = " or ".join(map(str, released.vocab_sizes))
            raise self.error(
                f"the key {key!r} is missing, and the released id {default} belongs to a "
                f"vocabulary of {sizes} tokens, not to one of {vocab_size}"
            )

        mask, eos, pad, eot = released.ids if released is not None else (None,) * 4
        return SpecialIds(
            need("mask_token_id", mask),
            need("eos_token_id", eos),
            need("pad_token_id", pad),
            read("eot_token_id", eot),
        )
