"""Tuning: the choice among results, the log a run continues from, the memory of canvases."""

import json
import math

import pytest
import torch

import dllm
from dllm.cache.plan import ForwardPlan
from dllm.config import DecodeConfig
from dllm.decoding.step import DecodeError
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.presets import preset_options, read_preset
from dllm.tuning.tune import GRID, REFERENCE, MemoModel, Report, TunedSetting, TuningResult, tune
from tests.fakes import MASK, VOCAB, FakeModel, FakeText, hashed

CONFIG = DecodeConfig(max_new_tokens=6, block_length=4)
PROMPTS = [[3, 4], [7], [6, 8, 9, 3], [10, 4, 4]]
SPECS = ("threshold:threshold=0.9", "threshold:threshold=0.5", "threshold:threshold=0.1")
FEW = tuple(TunedSetting(spec, {"sampler": spec}) for spec in SPECS)


def engine(**options):
    """A fake whose answers depend on the order of the commits, and its tokenizer."""
    return Engine(FakeModel(hashed(spread=1.0), **options), FakeText())


def result(name, forwards, agree, *, count=1000, **more):
    lost = more.pop("lost", count - agree)
    setting = TunedSetting(name, {"sampler": name})
    return TuningResult(setting, count, agree, lost, more.pop("gained", 0), forwards, 1.0, **more)


def report(*results, max_loss=0.005):
    reference = TuningResult(REFERENCE, 1000, 1000, 0, 0, 64.0, 1.0)
    return Report(reference, results, max_loss)


def records(log):
    """The lines of a log: its header, and the answers by setting and prompt."""
    header, *lines = map(json.loads, log.read_text().splitlines())
    found = {(json.dumps(r.pop("setting")), r.pop("prompt")): r for r in lines}
    assert len(found) == len(lines), "an answer is there twice"
    return header, found


def numbers(found):
    """What a report says, but for how it was computed."""
    return found.reference, found.results, found.chosen, found.frontier


def test_the_fewest_forwards_within_the_loss_are_chosen():
    slow, good, bad = result("slow", 20, 1000), result("good", 10, 995), result("bad", 9, 994)
    assert report(slow, good, bad).chosen is good  # a loss of exactly max_loss is within it
    assert report(slow, good, bad, max_loss=0.006).chosen is bad
    assert report(slow, good, bad, max_loss=0).chosen is slow


def test_ties_go_to_the_higher_agreement_and_then_to_the_earlier_setting():
    one, two, three = result("one", 10, 996), result("two", 10, 997), result("three", 10, 997)
    assert report(one, two, three).chosen is two


def test_without_a_good_setting_the_reference_is_chosen_and_said_to_be():
    found = report(result("bad", 9, 900))
    assert found.chosen is found.reference
    assert found.falls_back
    assert found.to_preset()["options"]["sampler"] == "quota"
    assert found.to_preset()["measured"]["falls_back"] is True
    assert not report(result("good", 9, 1000)).falls_back


def test_the_frontier_holds_what_nothing_beats():
    best, worse = result("best", 10, 990), result("worse", 10, 980)
    fast, slower, same = result("fast", 5, 900), result("slower", 12, 985), result("same", 10, 990)
    found = report(worse, slower, best, same, fast)
    assert found.frontier == (fast, best, found.reference)
    exact = result("exact", 30, 1000)
    assert report(fast, exact).frontier == (fast, exact)  # dominates the reference


def test_a_score_can_gain_as_well_as_lose():
    better = result("better", 10, 900, lost=10, gained=30, scored=True)
    assert better.loss == -0.02
    found = report(better, max_loss=0)
    assert found.chosen is better
    assert found.frontier == (better,)
    # Agresti and Min: half a prompt is added to each of the four cells
    middle, half = -20 / 1002, 1.96 * math.sqrt(41 - 400 / 1002) / 1002
    assert better.interval == pytest.approx((middle - half, middle + half))


def test_the_interval_of_the_loss_is_wilsons():
    assert result("none", 1, 100, count=100).interval == pytest.approx((0, 0.03699), abs=1e-4)
    assert result("some", 1, 90, count=100).interval == pytest.approx((0.0552, 0.1744), abs=1e-4)


def test_trials_are_what_plain_generation_gives():
    found = tune(engine(), PROMPTS, config=CONFIG, grid=FEW, batch_size=3)
    plain = {s.name: engine().generate(PROMPTS, CONFIG, **s.options) for s in (REFERENCE, *FEW)}
    reference = plain[REFERENCE.name]
    assert found.reference.loss == 0
    for t in (found.reference, *found.results):
        outputs = plain[t.setting.name]
        assert t.forwards * 4 == sum(o.nfe for o in outputs)
        assert t.agree == sum(a.token_ids == b.token_ids for a, b in zip(outputs, reference))
        assert t.tokens_per_forward == sum(o.answer_tokens for o in outputs) / (t.forwards * 4)
    assert [t.forwards for t in found.results] == sorted(t.forwards for t in found.results)
    assert len({t.agree for t in found.results}) > 1, "the fake should tell settings apart"


def test_any_loss_allows_the_fastest_and_none_only_full_agreement():
    anything = tune(engine(), PROMPTS, config=CONFIG, grid=FEW, max_loss=1)
    assert anything.chosen.forwards == min(t.forwards for t in anything.results)
    assert anything.chosen.agreement < 1
    nothing = tune(engine(), PROMPTS, config=CONFIG, grid=FEW, max_loss=0)
    assert nothing.chosen.agreement == 1


def test_a_score_replaces_agreement(tmp_path):
    wanted = [o.token_ids for o in engine().generate(PROMPTS, CONFIG, sampler=SPECS[2])]
    options = {"config": CONFIG, "grid": FEW, "max_loss": 0, "log": tmp_path / "log"}
    for _ in range(2):  # the second time from the log
        found = tune(engine(), PROMPTS, score=lambda i, o: o.token_ids == wanted[i], **options)
        assert found.chosen.setting.name == SPECS[2]
        assert found.chosen.gained > 0
        assert found.chosen.lost == 0


def test_the_whole_grid_runs():
    steps = []
    found = tune(
        engine(),
        PROMPTS[:2],
        config=CONFIG,
        batch_size=1,
        on_progress=lambda done, total, setting: steps.append((done, total)),
    )
    assert found.skipped == ()
    assert {t.setting for t in found.results} == set(GRID)
    assert steps == [(n, 2 * (len(GRID) + 1)) for n in range(1, 2 * (len(GRID) + 1) + 1)]
    assert len({s.key for s in GRID}) == len({s.name for s in GRID}) == len(GRID)


def test_a_setting_that_cannot_run_here_is_left_out_with_the_reason():
    adablock = TunedSetting("adablock", {"sampler": "threshold", "planner": "adablock"})
    found = tune(Engine(FakeModel()), PROMPTS, config=CONFIG, grid=[*FEW, adablock])
    assert len(found.results) == 3
    ((setting, reason),) = found.skipped
    assert setting is adablock
    assert "tokenizer" in reason


def test_the_batch_has_no_part_in_random_choices(tmp_path):
    grid = [TunedSetting("random", {"sampler": "quota:remasking=random"})]
    found = []
    for size in (1, 4):
        log = tmp_path / str(size)
        tune(engine(), PROMPTS, config=CONFIG, grid=grid, batch_size=size, log=log)
        found.append(records(log)[1])
    assert found[0] == found[1]


def test_equal_settings_are_run_once():
    again = TunedSetting("again", dict(FEW[0].options))
    assert len(tune(engine(), PROMPTS, config=CONFIG, grid=[*FEW, again]).results) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": CONFIG.replace(temperature=0.5)}, r"temperature=0\.5"),
        ({"grid": [TunedSetting("hot", {"temperature": 1.0})]}, r"temperature=1\.0"),
        ({"grid": [TunedSetting("odd", {"smapler": "quota"})]}, "unknown option 'smapler'"),
        ({"grid": [TunedSetting("odd", {"sampler": "treshold"})]}, "unknown sampler 'treshold'"),
        ({"grid": [TunedSetting("odd", {"planner": object()})]}, "which a preset file can hold"),
        ({"max_loss": 1.5}, r"max_loss=1\.5"),
        ({"max_loss": math.nan}, "max_loss=nan"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_forward(options, message):
    subject = engine()
    with pytest.raises(DllmError, match=message):
        tune(subject, PROMPTS, **{"config": CONFIG, "grid": FEW, **options})
    assert subject.model.calls == 0


def test_prompts_that_do_not_fit_are_refused_before_any_forward():
    subject = engine()
    with pytest.raises(DecodeError, match="row 4: 255 prompt tokens"):
        tune(subject, [*PROMPTS, [3] * 255], config=CONFIG, grid=FEW, batch_size=1)
    with pytest.raises(DllmError, match="0 prompts"):
        tune(subject, [], config=CONFIG, grid=FEW)
    assert subject.model.calls == 0


@pytest.mark.parametrize("at", [0, 3, 8, 15])
def test_an_interrupted_run_continues_and_equals_an_unbroken_one(tmp_path, at):
    options = {"config": CONFIG, "grid": FEW, "batch_size": 2, "memo_bytes": 0}
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    unbroken = tune(engine(), PROMPTS, log=whole, **options)
    with pytest.raises(KeyboardInterrupt):
        tune(engine(interrupt_at=at), PROMPTS, log=broken, **options)
    _, before = records(broken)
    assert len(before) < len(records(whole)[1])
    assert all(r["finish_reason"] != "interrupted" for r in before.values())
    resumed = tune(engine(), PROMPTS, log=broken, **options)
    assert numbers(resumed) == numbers(unbroken)
    assert records(broken) == records(whole)
    assert resumed.rows == unbroken.rows - sum(r["nfe"] for r in before.values())


def test_a_complete_log_needs_no_forward(tmp_path):
    options = {"config": CONFIG, "grid": FEW, "log": tmp_path / "log"}
    first = tune(engine(), PROMPTS, **options)
    text = options["log"].read_bytes()
    again = engine()
    assert numbers(tune(again, PROMPTS, batch_size=3, max_loss=0.005, **options)) == numbers(first)
    assert again.model.calls == 0
    assert options["log"].read_bytes() == text


@pytest.mark.parametrize("lines", [0, 1, 4])
def test_a_torn_last_line_is_dropped(tmp_path, lines):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    tune(engine(), PROMPTS, config=CONFIG, grid=FEW, log=whole)
    text = whole.read_bytes().splitlines(keepends=True)
    torn.write_bytes(b"".join(text[:lines]) + text[lines][:-9])
    tune(engine(), PROMPTS, config=CONFIG, grid=FEW, log=torn)
    assert records(torn) == records(whole)


def test_a_log_of_something_else_is_refused_and_left_alone(tmp_path):
    log = tmp_path / "log"
    tune(engine(), PROMPTS, config=CONFIG, grid=FEW[:1], log=log, model="one")
    text = log.read_bytes()
    same = {"config": CONFIG, "grid": FEW, "log": log, "model": "one"}
    shifted = Engine(FakeModel(shift=1), FakeText())
    for subject, prompts, change, message in [
        (engine(), PROMPTS[1:], {}, "another set of prompts "),
        (engine(), PROMPTS, {"model": "two"}, "another model "),
        (shifted, PROMPTS, {}, "another model "),
        (engine(), PROMPTS, {"config": CONFIG.replace(block_length=3)}, "another base config "),
    ]:
        with pytest.raises(DllmError, match=message):
            tune(subject, prompts, **same | change)
    assert log.read_bytes() == text
    assert len(tune(engine(), PROMPTS, **same).results) == 3  # another grid is no other log


@pytest.mark.parametrize(
    "text", ['{"format": "dllm-preset-1"}\n', "notes", "notes\n", "[]\n", "\n"]
)
def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path, text):
    log = tmp_path / "log"
    log.write_text(text)
    with pytest.raises(DllmError, match="expected a file of dllm-tune-1, or none"):
        tune(engine(), PROMPTS, config=CONFIG, grid=FEW, log=log)
    assert log.read_text() == text


def test_weights_tell_models_apart(tmp_path):
    class Weighted(FakeModel):
        def __init__(self, value):
            super().__init__()
            self.model = torch.nn.Linear(2, 2)
            torch.nn.init.constant_(self.model.weight, value)
            torch.nn.init.zeros_(self.model.bias)

    options = {"config": CONFIG, "grid": FEW[:1], "log": tmp_path / "log"}
    tune(Engine(Weighted(1.0)), PROMPTS, **options)
    tune(Engine(Weighted(1.0)), PROMPTS, **options)
    with pytest.raises(DllmError, match="another model"):
        tune(Engine(Weighted(2.0)), PROMPTS, **options)


def test_the_preset_file_gives_the_chosen_options_back(tmp_path):
    config = CONFIG.replace(stop=("x\n",), history=True)
    whole = TunedSetting("whole", {"sampler": SPECS[2], "block_length": None})
    found = tune(engine(), PROMPTS, config=config, grid=[whole], max_loss=1, model="fake")
    path = tmp_path / "preset.json"
    path.write_text("old")
    found.write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["preset.json"]
    content = json.loads(path.read_text())
    again = DecodeConfig().replace(**read_preset(path))
    assert again == config.replace(**whole.options, history=False)
    assert preset_options(str(path)) == content["options"]
    assert content["model"] == "fake"
    measured = content["measured"]
    assert measured["name"] == "whole"
    assert measured["prompts"] == 4
    assert measured["max_loss"] == 1
    assert measured["reference_forwards"] == found.reference.forwards
    assert [t["name"] for t in measured["frontier"]] == [t.setting.name for t in found.frontier]


def test_remembered_answers_are_the_models_own_for_any_batch():
    """Every setting one after the other through one memory, in fp64, ragged and with a shift."""
    for shift in (0, 1):
        memo = MemoModel(FakeModel(hashed(spread=1.0), shift=shift))
        for sampler in ("quota", *SPECS, "saber", "quota"):
            for block_length in (4, None):
                config = CONFIG.replace(sampler=sampler, block_length=block_length)
                mine = Engine(memo).generate(PROMPTS, config, history=True)
                plain = Engine(FakeModel(hashed(spread=1.0), shift=shift))
                for a, b in zip(mine, plain.generate(PROMPTS, config, history=True)):
                    assert (a.token_ids, a.nfe, a.history) == (b.token_ids, b.nfe, b.history)
        computed = sum(memo.model.batches)
        assert computed == memo.rows - memo.reused
        assert computed < 0.75 * memo.rows


def test_only_the_new_rows_of_a_batch_are_computed():
    model = FakeModel()
    memo = MemoModel(model)
    ids = torch.tensor([[3, MASK, MASK], [4, MASK, MASK], [6, MASK, MASK]])
    plan = ForwardPlan(torch.arange(3).expand(3, 3), torch.tensor([[1, 2]] * 3))
    some = ForwardPlan(plan.pos[:2], plan.head[:2])
    first = memo(ids[:2], some)
    mixed = memo(ids[[2, 1, 0]], plan)
    assert model.batches == [2, 1]
    assert torch.equal(mixed[[2, 1]], first)
    assert torch.equal(mixed, FakeModel()(ids[[2, 1, 0]], plan))
    assert (memo.rows, memo.reused) == (5, 2)


@pytest.mark.parametrize("shift", [0, 1])
def test_what_fills_a_row_up_is_not_computed_but_a_masked_position_is_in_any_order(shift):
    model = FakeModel(shift=shift)
    memo = MemoModel(model)
    ids = torch.tensor([[3, 4, 6, MASK, MASK]])
    pos = torch.arange(5)[None]
    memo(ids, ForwardPlan(pos, torch.tensor([[4 - shift]])))
    filled = memo(ids, ForwardPlan(pos, torch.tensor([[4 - shift, 0, 1]])))
    assert model.calls == 1
    assert filled[0, 1:].eq(0).all()
    backwards = ForwardPlan(pos, torch.tensor([[4 - shift, 3 - shift]]))
    assert torch.equal(memo(ids, backwards), FakeModel(shift=shift)(ids, backwards))


def test_other_heads_of_a_known_canvas_are_computed_and_joined():
    model = FakeModel()
    memo = MemoModel(model)
    ids = torch.tensor([[3, MASK, MASK, MASK]])
    pos = torch.arange(4)[None]
    for heads, calls in ([1, 2], 1), ([2, 3], 2), ([1, 3], 2), ([1, 2, 3], 2), ([3, 1], 2):
        plan = ForwardPlan(pos, torch.tensor([heads]))
        assert torch.equal(memo(ids, plan), FakeModel()(ids, plan))
        assert model.calls == calls
    assert memo.size == 3 * VOCAB * 8


def test_memory_is_bounded_and_forgets_what_was_not_used():
    model = FakeModel()
    memo = MemoModel(model, limit=2 * VOCAB * 8)  # two canvases of one logits row
    plan = ForwardPlan(torch.arange(2)[None], torch.tensor([[1]]))
    rows = {token: torch.tensor([[token, MASK]]) for token in (3, 4, 6)}
    for token, calls in (3, 1), (4, 2), (3, 2), (6, 3), (3, 3), (4, 4), (6, 5):
        memo(rows[token], plan)
        assert model.calls == calls
        assert memo.size <= memo.limit


def test_forwards_over_parts_of_a_row_go_through():
    class Passed(FakeModel):
        def __call__(self, ids, plan, kv=None):
            self.plans.append(plan)
            return torch.zeros(1)

    memo = MemoModel(Passed())
    ids = torch.tensor([[3, MASK, MASK]])
    part = ForwardPlan(torch.tensor([[1, 2]]), torch.tensor([[0]]))
    stored = ForwardPlan(torch.arange(3)[None], torch.tensor([[1]]))
    memo(ids, part)
    memo(ids, stored, kv=object())
    memo(ids, stored, kv=object())
    assert [id(plan) for plan in memo.model.plans] == [id(part), id(stored), id(stored)]
    assert memo.rows == 0


def test_the_bundled_model_is_tuned_to_a_fraction_of_the_forwards(tmp_path):
    prompts = [f"Reverse the list: {words}" for words in ("pear, fig, plum", "cat, dog, owl")]
    found = tune(
        dllm.load("tiny"),
        prompts,
        config=DecodeConfig(max_new_tokens=16),
        grid=GRID[:3],
        log=tmp_path / "log",
        model="tiny",
    )
    assert found.reference.forwards > 4 * found.chosen.forwards
    assert found.reused > 0
