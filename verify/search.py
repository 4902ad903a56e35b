"""From a lattice and model-free branches to the tree that the target verifies.

`Search` is the interface, one class per method; see couple.py and sources.py for what they use.
"""

from __future__ import annotations

from typing import Protocol

from dllm.verify.lattice import Lattice
from dllm.verify.rng import Rng
from dllm.verify.sources import Memory
from dllm.verify.tree import Tree


class Search(Protocol):
    """A part: a frozen dataclass of knobs.

    accepts: names of the acceptance rules that fit the trees it grows, the usual one first.
    samples: whether it draws tokens. If so nobody may cut its tree by what was drawn (a length
    that looks at the token it admits is biased); a deterministic tree may be cut anywhere.
    """

    @property
    def accepts(self) -> tuple[str, ...]: ...
    @property
    def samples(self) -> bool: ...

    def grow(self, root: int, lattice: Lattice, memory: Memory, drafts: int, rng: Rng) -> Tree:
        """A tree behind the token `root` of at most `drafts` nodes, the heaviest first.

        Its weights never rise along a path. Nothing is drafted behind a token of `lattice.eos`.
        An empty lattice leaves the branches of `memory`; without those the tree is the root.
        """
        ...
