"""A forward with a KV cache is one graph, as nothing in it looks at what stands on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from tests.cache.models import Watched, decoder, run, steps


class Compiled(Watched):
    """Runs a decoder's forward as one graph; what cannot be in one is an error."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.graphs = 0

        def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            self.graphs += 1
            return graph.forward

        torch.compiler.reset()
        self.forward = torch.compile(model, fullgraph=True, backend=counted, dynamic=True)

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        assert (kv is None) == (plan.access is None)
        self.plans.append(plan)
        with torch.no_grad():
            logits: Tensor = self.forward(ids, plan, kv)
        return logits


@pytest.mark.parametrize(
    "policy", ["none", "prefix", "dual", "vicinity:before=1,after=1,warmup=1", "block"]
)
def test_a_forward_of_the_loop_is_one_graph(policy):
    model = decoder(0, 4 if policy == "block" else None)
    options = {"max_new_tokens": 8, "block_length": 4, "cache": policy}
    prompts = [[3, 4, 6, 7, 8], [9, 10]]
    plain = run(model, prompts, **options)
    compiled = Compiled(model)
    with torch._dynamo.config.patch(recompile_limit=64):
        same = run(compiled, prompts, **options)
    assert [steps(a) for a in plain] == [steps(b) for b in same]
    assert 0 < compiled.graphs <= len(compiled.plans)
    if policy != "none":  # rows that compute all, and rows that compute a part
        assert len({plan.pos.shape[1] for plan in compiled.plans}) > 1
