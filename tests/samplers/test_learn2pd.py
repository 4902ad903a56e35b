"""Learn2PD: a filter over the whole window's confidences, its file, and the end-of-text cut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dllm.decoding.canvas import Canvas
from dllm.samplers.candidates import Candidates, Decoded, State
from dllm.samplers.learn2pd import NAMES, EndOfText, Learn2PD, load_filter, save_filter
from dllm.samplers.protocols import DeviceCanvas
from dllm.samplers.rule import quota
from tests.samplers.canvases import committed_at, on_device
from tests.samplers.views import alone, committed, hand_made, random_view, ranked, rows_of, views

BLOCK = 16  # 32 of them take Adam too long for a test


def layers_of(net: nn.Sequential) -> dict[str, Tensor]:
    first, _, last = net
    return dict(zip(NAMES, (first.weight, first.bias, last.weight, last.bias), strict=True))


def filter_net(block: int = BLOCK, hidden: int = 32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(block, hidden), nn.ReLU(), nn.Linear(hidden, block))


def fresh(conf: list[float], pos: list[int] | None = None, **fields: Tensor) -> Candidates:
    """One row with nothing decoded and every token the most likely one."""
    nothing = torch.zeros(1, 0)
    decoded = Decoded(nothing.long(), nothing.bool(), nothing)
    view = hand_made(conf, pos)
    view = replace(view, **{"best_conf": view.conf, "decoded": decoded} | fields)
    return replace(view, width=int(view.end - view.start))


def constant(path, wanted: list[float]) -> str:
    """A filter whose output is `wanted` logits whatever it sees."""
    block = len(wanted)
    zeros = torch.zeros(2, block), torch.zeros(2), torch.zeros(block, 2), torch.tensor(wanted)
    save_filter(path, dict(zip(NAMES, zeros, strict=True)))
    return str(path)


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """A filter that accepts about half of everything, for blocks of 16 tokens."""
    path = tmp_path_factory.mktemp("filter") / "lively.safetensors"
    layers = layers_of(filter_net(16, 7))
    save_filter(path, {name: 4 * layer for name, layer in layers.items()})
    return str(path)


@settings(max_examples=60)
@given(view=views(), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]), steps=st.integers(1, 20))
def test_a_batch_decides_as_the_text_says_row_by_row(lively, view, threshold, steps):
    rule = Learn2PD(lively, threshold, steps)
    tensors = load_file(lively)
    w1, b1, w2, b2 = (tensors[name].double().numpy() for name in NAMES)
    k = quota(view, steps).tolist()
    for b, row in enumerate(rows_of(view)):
        seen = np.ones(16)
        for c in row:
            seen[c.pos - int(view.start[b])] = c.best_conf
        done = view.decoded
        for d in range(done.pos.shape[1]):
            if done.valid[b, d]:
                seen[int(done.pos[b, d] - view.start[b])] = done.conf[b, d].item()
        out = w2 @ np.maximum(w1 @ seen + b1, 0) + b2
        accept = 1 / (1 + np.exp(-out)) > threshold
        expected = {c.pos for c in row if accept[c.pos - int(view.start[b])]}
        expected |= {c.pos for c in ranked(row)[: k[b]]}
        assert committed(rule, view)[b] == sorted(expected)
        assert committed(rule, alone(view, b)) == [sorted(expected)]


def test_a_position_is_its_offset_in_the_window(tmp_path):
    path = constant(tmp_path / "f", [-9.0, 9.0, -9.0, 9.0])
    view = fresh([0.1, 0.9, 0.2, 0.3], [5, 6, 7, 8], start=torch.tensor([5]))
    assert committed(Learn2PD(path), view) == [[6, 8]]
    view = fresh([0.1, 0.2, 0.9], [6, 7, 8], start=torch.tensor([5]))
    assert committed(Learn2PD(path), view) == [[6, 8]]


def test_the_filters_bound_is_strict(tmp_path):
    path = constant(tmp_path / "f", [0.0, 0.0])  # sigmoid(0) is exactly 0.5
    view = fresh([0.1, 0.9])
    assert committed(Learn2PD(path, 0.5), view) == [[1]]
    assert committed(Learn2PD(path, 0.4999), view) == [[0, 1]]


def test_the_default_threshold_is_the_papers(tmp_path):
    bar = math.log(0.96 / 0.04)
    path = constant(tmp_path / "f", [bar - 1e-3, bar + 1e-3, -9.0])
    assert committed(Learn2PD(path), fresh([0.1, 0.1, 0.9])) == [[1, 2]]


def test_the_most_confident_are_added_up_to_the_quota(tmp_path):
    path = constant(tmp_path / "f", [9.0, -9.0, -9.0, -9.0])
    view = fresh([0.1, 0.7, 0.9, 0.8])
    assert committed(Learn2PD(path), view) == [[0, 2]]
    assert committed(Learn2PD(path, steps=2), view) == [[0, 2, 3]]


def echo(path, block: int) -> str:
    """A filter that accepts offset 0 where the confidences add up to more than block - 0.5."""
    first, last = torch.zeros(1, block), torch.zeros(block, 1)
    first[0], last[0] = 1.0, 100.0
    save_filter(
        path,
        dict(
            zip(NAMES, (first, torch.tensor([0.5 - block]), last, torch.zeros(block)), strict=True)
        ),
    )
    return str(path)


def test_what_a_short_block_lacks_counts_as_one(tmp_path):
    rule = Learn2PD(echo(tmp_path / "f", 6))
    for conf, expected in [([0.9, 0.95, 0.8], [0, 1]), ([0.4, 0.9, 0.95], [2])]:
        assert committed(rule, fresh(conf)) == [expected]


def test_decoded_positions_are_seen_with_their_present_confidence(tmp_path):
    rule = Learn2PD(echo(tmp_path / "f", 4))
    for now, expected in [(0.95, [0, 1]), (0.3, [1])]:
        decoded = Decoded(
            torch.tensor([[2, 3]]), torch.tensor([[True, True]]), torch.tensor([[1.0, now]])
        )
        view = fresh([0.9, 0.95], decoded=decoded, end=torch.tensor([4]))
        assert committed(rule, view) == [expected]


def test_the_most_likely_token_is_seen_where_another_was_drawn(tmp_path):
    rule = Learn2PD(echo(tmp_path / "f", 2))
    view = fresh([0.1, 0.2], best_conf=torch.tensor([[0.9, 0.9]]))
    assert committed(rule, view) == [[0, 1]]
    assert committed(rule, replace(view, best_conf=view.conf)) == [[1]]


def test_a_window_longer_than_the_filter_is_refused(tmp_path):
    rule = Learn2PD(constant(tmp_path / "f", [0.0] * 3))
    with pytest.raises(ValueError, match=r"blocks of 3 tokens, got a window of 4"):
        rule.select(view_of(torch.full((1, 4), 0.5)))


# --- a filter learns an oracle -----------------------------------------------------------------


def view_of(conf: Tensor) -> Candidates:
    """Rows [B, W] of confidences: one window each, all of it masked positions."""
    n, block = conf.shape
    one = hand_made([0.5] * block)
    tensors = {
        name: getattr(one, name).expand(n, *getattr(one, name).shape[1:])
        for name in "pos valid token ends start end window_step window_masked step prompt".split()
    }
    return replace(
        one,
        **tensors,
        conf=conf,
        log1m=(1 - conf).log(),
        length=tensors["end"],
        masked=tensors["end"],
        fillable=tensors["end"],
        row=torch.arange(n),
        key=torch.arange(n),
        best=tensors["token"],
        best_conf=conf,
        decoded=Decoded(
            torch.zeros(n, 0, dtype=torch.long), torch.zeros(n, 0, dtype=torch.bool), conf[:, :0]
        ),
    )


BARS = torch.linspace(0.3, 0.8, BLOCK)  # the oracle: right iff above the bar of the position


def samples(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Confidences and labels; none within 0.1 of its bar, where nobody could tell."""
    draw = torch.Generator().manual_seed(seed)
    conf = torch.rand(n, BLOCK, generator=draw) * 0.98 + 0.01
    near = (conf - BARS).abs() < 0.1
    conf = torch.where(near, BARS + 0.15 * (conf - BARS).sign(), conf)
    return conf, conf > BARS


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    net = filter_net()
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    conf, label = samples(4096, 1)
    for step in range(400):
        part = slice(step % 8 * 512, step % 8 * 512 + 512)
        adam.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(net(conf[part]), label[part].float())
        loss.backward()
        adam.step()
    return layers_of(net)


def agreement(layers: dict[str, Tensor], path) -> float:
    """Share of positions where the rule commits as the oracle, on confidences not trained on."""
    save_filter(path, layers)
    conf, label = samples(300, 2)
    commit = Learn2PD(str(path), threshold=0.5).select(view_of(conf)).commit
    return (commit == label).double().mean().item()


def test_a_trained_filter_commits_as_its_oracle(trained, tmp_path):
    assert agreement(trained, tmp_path / "f") >= 0.97


def test_a_permuted_filter_does_not(trained, tmp_path):
    mixed = torch.randperm(BLOCK, generator=torch.Generator().manual_seed(3))
    columns = trained | {"in.weight": trained["in.weight"][:, mixed]}
    rows = trained | {name: trained[name][mixed] for name in ("out.weight", "out.bias")}
    assert agreement(columns, tmp_path / "f") < 0.8
    assert agreement(rows, tmp_path / "f") < 0.8


# --- the file ----------------------------------------------------------------------------------


def test_a_filter_survives_its_file(tmp_path):
    layers = layers_of(filter_net(8, 5))
    save_filter(tmp_path / "f", layers)
    loaded = load_filter(tmp_path / "f")
    assert set(loaded) == set(NAMES)
    assert all(torch.equal(loaded[name], layers[name]) for name in NAMES)
    rule = Learn2PD(str(tmp_path / "f"))
    assert rule == Learn2PD(str(tmp_path / "f"))
    assert "tensor(" not in repr(rule)


GOOD = {"format": "dllm-filter-1", "block_length": "4"}


@pytest.mark.parametrize(
    ("change", "metadata", "says"),
    [
        ({}, {"format": "dllm-filter-2", "block_length": "4"}, "'dllm-filter-2', expected 'dllm-f"),
        ({}, None, "format is None"),
        ({}, GOOD | {"block_length": "32"}, "block_length is '32', but its layers are for 4"),
        ({}, {"format": "dllm-filter-1"}, "block_length is None"),
        ({"in.bias": torch.zeros(4)}, GOOD, r"'in.bias' has shape \[4\], expected \[3\]"),
        ({"in.weight": torch.zeros(3)}, GOOD, r"'in.weight' has shape \[3\]"),
        ({"out.weight": torch.zeros(3, 4)}, GOOD, r"'out.weight' has shape \[3, 4\]"),
        ({"out.bias": torch.full((4,), torch.nan)}, GOOD, "finite weights"),
        ({"mid.bias": torch.zeros(4)}, GOOD, "holds .*mid.bias"),
    ],
)
def test_a_file_that_is_no_filter_says_why(tmp_path, change, metadata, says):
    layers = {k: v.detach().clone() for k, v in layers_of(filter_net(4, 3)).items()}
    save_file(layers | change, tmp_path / "f", metadata)
    with pytest.raises(ValueError, match=says):
        Learn2PD(str(tmp_path / "f"))


def test_missing_layers_and_files_are_named(tmp_path):
    layers = layers_of(filter_net(4, 3))
    del layers["out.bias"]
    with pytest.raises(ValueError, match=r"holds \['in.bias', 'in.weight', 'out.weight'\]"):
        save_filter(tmp_path / "f", layers)
    with pytest.raises(ValueError, match="nowhere"):
        load_filter(tmp_path / "nowhere")
    (tmp_path / "text").write_text("a filter")
    with pytest.raises(ValueError, match=r"text.*expected a safetensors file"):
        load_filter(tmp_path / "text")


@pytest.mark.parametrize("options", [{"threshold": 1.1}, {"threshold": math.nan}, {"steps": 0}])
def test_bad_options_name_their_value(lively, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Learn2PD(lively, **options)


# --- the end-of-text cut -------------------------------------------------------------------------

END = 2  # the only stop id here; hand_made proposes 3
STATE: State = {}


def canvas_of(known: dict[int, int], prompt: int = 1, new: int = 6) -> DeviceCanvas:
    canvas = Canvas.from_prompts([[END] * prompt], new, mask_id=9)
    for pos, token in known.items():
        canvas = committed_at(canvas, 0, [pos], token)
    return on_device(canvas)


def proposals(ends: dict[int, float]) -> Candidates:
    """Masked positions 1 to 6; those in `ends` propose an end token with that confidence."""
    view = hand_made([ends.get(pos, 0.999) for pos in range(1, 7)], list(range(1, 7)))
    return replace(view, ends=torch.tensor([[pos in ends for pos in range(1, 7)]]))


def cut(rule: EndOfText, ends: dict[int, float], known: dict[int, int]) -> int:
    verdict = rule.check(proposals(ends), canvas_of(known), STATE)
    assert verdict.fill is None
    return int(verdict.length)


def test_everything_behind_the_first_committed_end_is_dropped():
    rule = EndOfText(stop_ids=(END,))
    assert cut(rule, {}, {3: END, 5: END, 2: 4}) == 4
    assert cut(rule, {}, {3: 4}) == 7  # the prompt's own end token is none


def test_a_sure_proposal_counts_and_its_masked_position_stays():
    rule = EndOfText(stop_ids=(END,))
    assert cut(rule, {4: 0.97}, {2: 4}) == 5
    assert cut(rule, {4: 0.95}, {2: 4}) == 7
    assert cut(EndOfText(0.5), {4: 0.5}, {2: 4}) == 5


def test_the_most_confident_proposal_is_cut_behind_ties_to_the_lower_position():
    rule = EndOfText(0.5)
    assert cut(rule, {2: 0.6, 5: 0.9, 6: 0.8}, {1: 4}) == 6
    assert cut(rule, {3: 0.7, 5: 0.7}, {1: 4}) == 4


def test_threshold_0_is_the_released_code():
    assert cut(EndOfText(0.0), {2: 0.01, 5: 0.02}, {1: 4}) == 6
    assert cut(EndOfText(0.0), {}, {1: 4}) == 7


def test_the_earlier_of_both_ends_decides():
    rule = EndOfText(0.5, (END,))
    assert cut(rule, {2: 0.6}, {5: END}) == 3
    assert cut(rule, {6: 0.6}, {5: END}) == 6


def test_a_proposal_that_was_not_taken_does_not_count():
    assert cut(EndOfText(0.5), {3: 0.9}, {3: 4}) == 7


@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.9]))
def test_a_batch_is_cut_row_by_row(seed, rows, threshold):
    rng = np.random.default_rng(seed)
    view = random_view(rng, rows, 8)
    size = int(view.length.max())
    known = torch.from_numpy(rng.random((rows, size)) < 0.5)
    pos = torch.arange(size)
    inside = (pos >= view.prompt[:, None]) & (pos < view.length[:, None])
    ids = torch.from_numpy(rng.integers(0, 8, (rows, size)))
    canvas = DeviceCanvas(ids, known | ~inside, inside, view.prompt, view.length)
    lengths = EndOfText(threshold, (1, 2)).check(view, canvas, STATE).length
    for b, row in enumerate(rows_of(view)):
        length = int(view.length[b])
        ends = [
            p + 1 for p in range(length) if inside[b, p] and known[b, p] and ids[b, p] in (1, 2)
        ]
        sure = [c for c in row if c.ends and c.conf >= np.float32(threshold)]
        open_ones = [c for c in sure if not known[b, c.pos]]
        cuts = [ranked(open_ones)[0].pos + 1] if open_ones else []
        assert int(lengths[b]) == min([length, *ends, *cuts])


def test_bind_takes_the_stop_ids_of_the_vocabulary():
    class Vocabulary:
        size, mask_id, stop_ids = 9, 0, (1, END)

    rule = EndOfText(0.9).bind(Vocabulary())
    assert rule == EndOfText(0.9, (1, END))
    assert not rule.whole_row
    with pytest.raises(ValueError, match="threshold=-1"):
        EndOfText(-1)
