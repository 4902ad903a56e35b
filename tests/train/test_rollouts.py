import json

import pytest
import torch

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.jsonlog import JsonLog
from dllm.train.data import TrainingPair
from dllm.train.rollouts import Rollouts, own, target
from tests.echo import Echo, echo, write_tiny
from tests.train.test_tiny_ar import small


def silent(*_):
    pass


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return echo(write_tiny(tmp_path_factory.mktemp("tiny")))


class TestOwn:
    def test_answers_and_the_forward_that_committed_each_token(self, engine):
        prompts = [engine.encode(text) for text in ("one two three four five", "ten")]
        config = DecodeConfig(max_new_tokens=16, sampler="threshold")
        pairs = list(own(engine, prompts, config, together=2))
        outputs = engine.generate(prompts, config, history=True)
        for pair, prompt, output in zip(pairs, prompts, outputs, strict=True):
            assert (pair.prompt, pair.answer, pair.whole) == (prompt, output.token_ids, True)
            order = {at: c.nfe for c in output.history for at in c.positions}
            places = range(len(prompt), len(prompt) + len(pair.answer) + 1)
            assert pair.order == [order[at] for at in places]
        assert len(set(pairs[0].order)) > 1

    def test_an_answer_that_is_cut_off_says_so(self, engine):
        prompts = [engine.encode("one two three four five")]
        (pair,) = own(engine, prompts, DecodeConfig(max_new_tokens=3), together=4)
        assert not pair.whole
        assert len(pair.answer) == len(pair.order) == 3

    def test_an_answer_that_was_interrupted_is_none(self, engine):
        broken = Engine(Echo(engine, interrupt_at=2), engine.text)
        prompts = [broken.encode(text) for text in ("one two", "ten")]
        with pytest.raises(KeyboardInterrupt):
            list(own(broken, prompts, DecodeConfig(max_new_tokens=16), together=1))


class TestTarget:
    def test_is_what_generate_gives_alone(self):
        model = small().eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
        prompts = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
        found = list(target(model, prompts, 12, together=3))
        ended = []
        for prompt, pair in zip(prompts, found, strict=True):
            ids = torch.tensor([prompt])
            alone = model.generate(ids, max_new_tokens=12, do_sample=False)[0, len(prompt) :]
            alone = alone.tolist()
            whole = 0 in alone
            alone = alone[: alone.index(0)] if whole else alone
            assert pair == TrainingPair(prompt, alone, (), whole)
            ended.append(whole)

    def test_an_end_is_not_part_of_the_answer(self):
        model = small().eval()
        model.generation_config.eos_token_id = [0, 7]

        def generate(ids, **_):
            return torch.cat([ids, torch.tensor([[5, 7, 0, 0], [5, 6, 8, 9]])], 1)

        model.generate = generate
        found = list(target(model, [[3], [4, 4]], 4, together=2))
        assert found == [
            TrainingPair([3], [5], (), True),
            TrainingPair([4, 4], [5, 6, 8, 9], (), False),
        ]


class TestFile:
    PROMPTS = ([1], [2], [3])

    def make(self, prompts):
        for (token,) in prompts:
            self.made.append(token)
            if token == self.fails_at:
                raise KeyboardInterrupt
            yield TrainingPair([token], [token + 10], [1, 2], token != 2)

    @pytest.fixture
    def rollouts(self, tmp_path):
        self.made, self.fails_at = [], None
        return Rollouts(tmp_path / "sub" / "r.jsonl", {"model": "m", "prompts": "p"})

    def test_is_made_once(self, rollouts):
        for _ in range(2):
            rollouts.complete(self.PROMPTS, self.make, silent)
            found = rollouts.read()
        assert self.made == [1, 2, 3]
        assert found == [TrainingPair([t], [t + 10], [1, 2], t != 2) for t in (1, 2, 3)]

    def test_an_interrupted_run_goes_on(self, rollouts):
        self.fails_at = 2
        with pytest.raises(KeyboardInterrupt):
            rollouts.complete(self.PROMPTS, self.make, silent)
        with rollouts.path.open("a") as file:
            file.write('{"prompt": [2], "ans')  # a crash in the middle of a line
        self.fails_at = None
        rollouts.complete(self.PROMPTS, self.make, silent)
        assert self.made == [1, 2, 2, 3]
        assert [pair.prompt for pair in rollouts.read()] == [[1], [2], [3]]

    def test_progress_is_told(self, rollouts):
        told = []
        rollouts.complete(self.PROMPTS, self.make, lambda *each: told.append(each))
        assert told == [("answers", n, 3) for n in (1, 2, 3)]

    def test_another_question_is_refused(self, rollouts):
        rollouts.complete(self.PROMPTS, self.make, silent)
        other = Rollouts(rollouts.path, {"model": "other", "prompts": "p"})
        with pytest.raises(DllmError, match=r"another model \('m' there, 'other' here\)"):
            other.read()
        more = Rollouts(rollouts.path, {"model": "m", "prompts": "p", "max_new_tokens": 3})
        with pytest.raises(
            DllmError,
            match=r"another max_new_tokens \(None there, 3 here\): give another --rollouts",
        ):
            more.complete(self.PROMPTS, self.make, silent)

    @pytest.mark.parametrize("text", ["no json", "no json\n", "[1]\n", json.dumps({"a": 1}) + "\n"])
    def test_another_file_is_refused_and_left_alone(self, rollouts, text):
        rollouts.path.parent.mkdir()
        rollouts.path.write_text(text)
        with pytest.raises(DllmError, match="expected a file of"):
            rollouts.complete(self.PROMPTS, self.make, silent)
        assert rollouts.path.read_text() == text

    @pytest.mark.parametrize(
        "line",
        [
            "[1]",
            "{}",
            '{"prompt": [1], "answer": 3, "order": [], "whole": true}',
            '{"prompt": [1], "answer": ["a"], "order": [], "whole": true}',
            '{"prompt": [1], "answer": [1], "order": [], "whole": 1}',
            '{"prompt": [1], "answer": [1], "order": [], "whole": true, "more": 1}',
        ],
    )
    def test_a_line_that_is_no_answer_is_named(self, rollouts, line):
        rollouts.complete(self.PROMPTS, self.make, silent)
        with rollouts.path.open("a") as file:
            file.write(line + "\n")
        with pytest.raises(DllmError, match="line 5: expected a"):
            rollouts.read()

    def test_two_runs_do_not_write_one_file(self, rollouts):
        rollouts.complete(self.PROMPTS, self.make, silent)
        with JsonLog(rollouts.path), pytest.raises(DllmError, match="another process"):
            rollouts.complete(self.PROMPTS, self.make, silent)
