"""Training a Markov head: its loss by the formula, and what it gives through the real search."""

import math

import pytest
import torch
import torch.nn.functional as F

from dllm.errors import DllmError
from dllm.models.markov import MarkovHead
from dllm.train.markov import markov_logits, markov_loss
from dllm.verify.draft.conditional import lattices
from dllm.verify.draft.construct import SampledChain
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Argmax, Product
from dllm.verify.sources.memory import Memory

B, K, V = 3, 4, 6


def example(seed=0):
    torch.manual_seed(seed)
    head = MarkovHead(V, 2)
    torch.nn.init.normal_(head.right.weight)
    return head, torch.randn(B, K, V), torch.randint(V, (B, K)), torch.randint(V, (B,))


@pytest.mark.parametrize(("decay", "share"), [(4.0, 0.9), (1.5, 0.0), (1e9, 1.0)])
@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("with_valid", [False, True])
def test_the_loss_is_what_it_says(decay, share, with_target, with_valid):
    head, logits, tokens, last = example()
    target = torch.randn(B, K, V).softmax(-1)
    valid = torch.rand(B, K) < 0.6
    table = head.left.weight @ head.right.weight.T
    total, weight = 0.0, 0.0
    for b in range(B):
        for k in range(K):
            if with_valid and not valid[b, k]:
                continue
            before = tokens[b, k - 1] if k else last[b]
            distribution = (logits[b, k] + table[before]).softmax(-1)
            loss = -distribution[tokens[b, k]].log()
            if with_target:
                apart = 1 - torch.minimum(distribution, target[b, k]).sum()
                loss = (1 - share) * loss + share * apart
            total += math.exp(-k / decay) * loss.item()
            weight += math.exp(-k / decay)
    found = markov_loss(
        head,
        logits,
        tokens,
        last,
        valid=valid if with_valid else None,
        target=target if with_target else None,
        decay=decay,
        tv_share=share,
    )
    assert found.item() == pytest.approx(total / weight, rel=1e-5)


def test_logits_of_any_rows_are_biased_in_fp32():
    head, logits, tokens, _ = example()
    flat = markov_logits(head, logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(flat.view(B, K, V), logits + head.bias(tokens))
    assert markov_logits(head, logits.bfloat16(), tokens).dtype == torch.float32


def test_no_position_that_counts_is_no_loss():
    head, logits, tokens, last = example()
    valid = torch.zeros(B, K, dtype=torch.bool)
    loss = markov_loss(head, logits, tokens, last, valid=valid)
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 0.0}, "decay=0.0: expected a number of positions above 0"),
        ({"tv_share": 1.5}, "tv_share=1.5: expected a number from 0 to 1"),
    ],
)
def test_numbers_that_mean_nothing(options, said):
    with pytest.raises(DllmError, match=said):
        markov_loss(*example(), **options)


# A chain over V tokens: behind u comes u + 1 with probability LIKELY, else any other. Its marginals
# behind a uniform token are uniform, so that a drafter without a head knows nothing at all.
LIKELY = 0.8
CHAIN = torch.full((V, V), (1 - LIKELY) / (V - 1))
CHAIN[range(V), [(u + 1) % V for u in range(V)]] = LIKELY


def draft(steps, batch=64):
    """Chains of K tokens behind uniform ones: tokens [batch, K], last [batch]."""
    generator = torch.Generator().manual_seed(steps)
    text = [torch.randint(V, (batch,), generator=generator)]
    for _ in range(K):
        text.append(torch.multinomial(CHAIN[text[-1]], 1, generator=generator)[:, 0])
    return torch.stack(text[1:], 1), text[0]


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "target"])
def learned(request):
    torch.manual_seed(0)
    head = MarkovHead(V, V - 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for step in range(250):
        tokens, last = draft(step)
        target = CHAIN[torch.cat([last[:, None], tokens[:, :-1]], 1)] if request.param else None
        loss = markov_loss(head, torch.zeros(len(last), K, V), tokens, last, target=target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def accepted(tree, last):
    """E[accepted drafts] where the target is the chain: the sum of its probabilities of nodes."""
    weights = [1.0]
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        before = tree.tokens[parent] if parent else last
        weights.append(weights[parent] * CHAIN[before, tree.tokens[node]].item())
    return sum(weights[1:])


def with_head(head, last):
    with torch.no_grad():
        [lattice] = lattices(head.bias, torch.zeros(1, K, V), [last], [K], V)
    return lattice


@pytest.mark.parametrize("last", [0, 3])
def test_a_trained_head_drafts_what_the_chain_says(learned, last):
    """Closed forms: a greedy path keeps the sum of LIKELY ** i, one of uniform columns 1 / V each
    (a walk through the chain that ignores it); of a tree with as many nodes the chain's heaviest.
    """
    lattice, memory = with_head(learned, last), Memory()
    path = Argmax().grow(last, lattice, memory, K, None)
    assert accepted(path, last) == pytest.approx(sum(LIKELY**i for i in range(1, K + 1)))
    plain = Lattice.of(torch.zeros(K, V), V)
    without = [accepted(Argmax().grow(u, plain, memory, K, None), u) for u in range(V)]
    assert sum(without) / V < 1.5 / V + 0.1
    # the path first; then nodes of weight LIKELY ** 3 * (1 - LIKELY) / (V - 1) and so on
    tree = Product().grow(last, lattice, memory, K + 1, None)
    assert accepted(tree, last) == pytest.approx(
        sum(LIKELY**i for i in range(1, K + 1)) + (1 - LIKELY) / (V - 1)
    )


@pytest.mark.parametrize("last", [0, 3])
def test_a_drawn_token_is_accepted_as_the_laws_overlap(learned, last):
    """1 - TV of each conditional from the chain's: near 1 with the head, and without it
    1 - (LIKELY - 1 / V)."""
    lattice = with_head(learned, last)
    for depth in range(1, K):
        for before in range(V):
            distribution = lattice.distribution_behind(depth, before)
            overlap = sum(
                min(q, CHAIN[before, t].item())
                for t, q in zip(distribution.tokens, distribution.probs)
            )
            assert overlap > 0.94
    plain = torch.full((V,), 1 / V)
    assert torch.minimum(plain, CHAIN[0]).sum().item() == pytest.approx(1 - (LIKELY - 1 / V))
    assert SampledChain().accepts[0] == "block"


def test_only_the_head_learns():
    head, logits, tokens, last = example()
    logits.requires_grad_(False)
    markov_loss(head, logits, tokens, last).backward()
    assert all(p.grad is not None for p in head.parameters())
    again = MarkovHead(V, 2)
    loss = markov_loss(again, logits, tokens, last)
    plain = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(B, K)
    weights = torch.exp(-torch.arange(K) / 4.0).expand(B, K)
    assert loss.item() == pytest.approx((plain * weights).sum().item() / weights.sum().item())
