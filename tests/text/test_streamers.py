"""Consumers of events: followers, the driver, transformers streamers, JSON."""

import json
import re
import threading
import time
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TextDiffusionStreamer, TextIteratorStreamer, TextStreamer

from dllm.decoding.driving import drive
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.output import Commit, Output, Started, Timings
from dllm.text.following import Follower
from dllm.text.streamers import feed
from tests.echo import echo, write_tiny
from tests.fakes import EOS, FakeModel, FakeText, hashed, leaning

SEVEN = "one two three four five six seven"
BYTES = "naïve 日本 🙂👍🏽 x"  # characters of two to four bytes, each byte a token


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def text(folder):
    return echo(folder).text


@pytest.fixture
def engine(folder):
    return echo(folder)


class TestFollower:
    def test_rebuilds_the_canvas(self, engine):
        follower = Follower.of(engine)
        for event in engine.stream(SEVEN):
            follower.apply(event)
            if isinstance(event, Commit) and event.nfe == 1:
                assert follower.text(follower.rows[0]) == " two five"
                assert follower.count(follower.rows[0]) == 3  # the end of text counts, once
        row = follower.rows[0]
        assert row.forwards[:8] == [3, 1, 2, 3, 1, 2, 3, 1]
        assert follower.text(row) == row.output.text == SEVEN
        assert follower.count(row) == row.output.answer_tokens == 8

    def test_a_step_is_complete_when_every_row_has_seen_it(self, engine):
        follower = Follower.of(engine)
        seen = []
        for event in engine.stream(["one two three four", "five"], block_length=None):
            follower.apply(event)
            seen.append((type(event).__name__, follower.step_is_complete()))
        commits = [done for kind, done in seen if kind == "Commit"]
        assert commits == [False, True] * 2 + [True] * (len(commits) - 4)

    def test_needs_a_tokenizer(self, engine):
        with pytest.raises(DllmError, match="no tokenizer"):
            Follower.of(Engine(engine.model))


class TestDrive:
    def test_gives_the_outputs(self, engine):
        done, interrupted = drive(engine.stream([SEVEN, "one"]))
        assert not interrupted
        assert {row: output.text for row, output in done.items()} == {0: SEVEN, 1: "one"}

    def test_seconds_are_the_engines(self, engine):
        seconds = []

        class Slow:
            def show(self, event, spent):
                seconds.append(spent)
                time.sleep(0.1)

        drive(engine.stream(SEVEN), Slow())
        assert seconds == sorted(seconds)
        assert seconds[-1] < 0.1 * (len(seconds) - 1)

    def test_ctrl_c_in_a_consumer_keeps_what_is_committed(self, engine):
        class Impatient:
            def show(self, event, spent):
                if isinstance(event, Commit) and event.nfe == 2:
                    raise KeyboardInterrupt

        done, interrupted = drive(engine.stream(SEVEN), Impatient())
        output = done[0]
        assert interrupted
        assert (output.finish_reason, output.nfe) == ("interrupted", 2)
        assert output.text == "two three five six"


class Collector:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.puts, self.drafts, self.ends = [], [], 0

    def put(self, value):
        self.puts.append(value.tolist())

    def put_draft(self, value):
        self.drafts.append(value.tolist())

    def end(self):
        self.ends += 1


class TestFeed:
    @pytest.mark.parametrize("prompt", [SEVEN, BYTES, "one\ntwo three\n"])
    def test_text_iterator_streamer(self, engine, prompt):
        streamer = TextIteratorStreamer(
            engine.text.tokenizer, skip_prompt=True, timeout=20, skip_special_tokens=True
        )
        outputs = []
        thread = threading.Thread(
            target=lambda: outputs.append(feed(engine.stream(prompt), streamer, engine))
        )
        thread.start()
        streamed = "".join(streamer)
        thread.join()
        assert streamed == outputs[0].text == prompt.strip()

    def test_text_streamer(self, engine, capsys):
        output = feed(
            engine.stream(SEVEN), TextStreamer(engine.text.tokenizer, skip_prompt=True), engine
        )
        assert capsys.readouterr().out == output.text + "\n"

    def test_text_diffusion_streamer(self, engine, capsys):
        streamer = TextDiffusionStreamer(engine.text.tokenizer, skip_prompt=True)
        output = feed(engine.stream(SEVEN), streamer, engine)
        shown = capsys.readouterr().out
        drafts = re.findall(r"\x1b7\x1b\[33m(.*?)\x1b\[0m", shown, re.DOTALL)
        mask = "<|mask|>"
        assert drafts == [
            f"{mask} two{mask}{mask} five{mask}{mask}",
            f"{mask} two three{mask} five six{mask}",
        ]
        final = re.sub(r"\x1b7.*?\x1b8\x1b\[J", "", shown, flags=re.DOTALL)
        assert final == output.text + "\n"

    def test_prefixes_as_soon_as_they_are_decided(self, engine):
        streamer = Collector()
        output = feed(engine.stream(SEVEN, block_length=3), streamer, engine)
        prompt, *puts = streamer.puts
        assert prompt == engine.encode(SEVEN)
        assert list(chain(*puts)) == output.token_ids
        assert len(puts) > 1
        assert streamer.ends == 1

    def test_drafts_hold_masks_and_end_before_the_end_token(self, engine):
        streamer = Collector()
        feed(engine.stream(SEVEN), streamer, engine)
        one, two, three, four, five, six, seven = engine.text.encode(f" {SEVEN}")
        mask = engine.model.spec.mask_id
        assert streamer.drafts == [
            [mask, two, mask, mask, five, mask, mask],
            [mask, two, three, mask, five, six, mask],
        ]
        assert one != four != seven

    @pytest.mark.parametrize("stop", ["three", "e f", "four five", "ven", "x", "e", "two t"])
    @pytest.mark.parametrize("block_length", [1, 2, None])
    def test_nothing_is_put_that_a_stop_string_cuts(self, engine, stop, block_length):
        streamer = Collector()
        events = engine.stream(SEVEN, stop=stop, block_length=block_length)
        output = feed(events, streamer, engine, stop=[stop])
        assert list(chain(*streamer.puts[1:])) == output.token_ids
        assert engine.text.decode(output.token_ids) in SEVEN.partition(stop)[0]
        assert len(streamer.drafts) <= output.nfe  # none behind the end

    @given(st.sampled_from(["saber", "saber:count=5", "threshold:threshold=0.5"]), st.data())
    def test_nothing_is_put_that_is_taken_back(self, sampler, data):
        out = hashed(data.draw(st.integers(0, 2**32)), 3.0)
        engine = Engine(FakeModel(leaning(EOS, 1.0, out)), FakeText())
        planner = data.draw(st.sampled_from(["fixed", "multi:add=0", "slowfast:explore=2"]))
        options = {"sampler": sampler, "planner": planner, "block_length": 4}
        streamer = Collector()
        events = engine.stream([3], max_new_tokens=16, **options)
        output = feed(events, streamer, engine)
        assert list(chain(*streamer.puts[1:])) == output.token_ids

    def test_a_window_that_is_full_is_put_also_by_a_rule_that_takes_back(self):
        streamer, engine = Collector(), Engine(FakeModel(leaning(7)), FakeText())
        options = {"sampler": "saber", "block_length": 4, "max_new_tokens": 12}
        feed(engine.stream([3], **options), streamer, engine)
        assert [len(put) for put in streamer.puts] == [1, 4, 4, 4]

    def test_ctrl_c_in_the_streamer_ends_the_answer(self, engine):
        class Impatient(Collector):
            def put(self, value):
                super().put(value)
                if len(self.puts) == 2:
                    raise KeyboardInterrupt

        streamer = Impatient()
        output = feed(engine.stream(SEVEN, block_length=3), streamer, engine)
        assert output.finish_reason == "interrupted"
        assert list(chain(*streamer.puts[1:])) == output.token_ids
        assert streamer.ends == 1

    def test_an_interrupted_answer_is_put_whole(self, folder):
        engine, streamer = echo(folder, interrupt_at=3), Collector()
        output = feed(engine.stream(SEVEN), streamer, engine)
        assert output.finish_reason == "interrupted"
        assert list(chain(*streamer.puts[1:])) == output.token_ids

    def test_one_prompt_only(self, engine):
        streamer = Collector()
        with pytest.raises(DllmError, match="takes one prompt"):
            feed(engine.stream([SEVEN, SEVEN]), streamer, engine)
        assert streamer.ends == 1  # a thread that waits for text must not wait for ever

    def test_an_error_ends_the_stream(self, engine):
        def broken():
            yield Started(0, [1], 4)
            raise DllmError("broken")

        streamer = Collector()
        with pytest.raises(DllmError, match="broken"):
            feed(broken(), streamer, engine)
        assert streamer.ends == 1

    def test_values_are_tensors(self, engine):
        class Check(Collector):
            def put(self, value):
                assert isinstance(value, torch.Tensor)
                assert value.dtype == torch.int64
                super().put(value)

        feed(engine.stream("abc"), Check(), engine)


def test_an_output_as_json():
    output = Output("a b", [3, 4], "eos", 2, 5, 8, 3, Timings(0.5, 0.25, 0.125))
    assert json.loads(json.dumps(output.as_dict())) == {
        "text": "a b",
        "token_ids": [3, 4],
        "finish_reason": "eos",
        "nfe": 2,
        "canvases": 5,
        "slots": 8,
        "answer_tokens": 3,
        "tokens_per_forward": 1.5,
        "committed_per_forward": 4.0,
        "timings": {"total": 0.5, "forward": 0.25, "prompt": 0.125},
    }
