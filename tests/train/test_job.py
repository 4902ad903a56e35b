import json
from dataclasses import replace

import pytest
import torch

from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.eval.tasks.datasets import is_held_out
from dllm.train.job import Job
from dllm.train.mixtures import EVERYTHING
from dllm.train.questions import Question, read_questions
from dllm.train.student import Student
from dllm.train.trainer import TrainConfig
from tests.echo import echo, write_tiny


def silent(*_):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def student(folder):
    return Student.of(str(folder), "float32", "cpu")


class TestQuestions:
    def test_generators_give_training_examples(self):
        drawn = read_questions("generators:sort+calculation", 40, 0)
        assert len(drawn) == 40
        assert not any(is_held_out(question.asked) for question in drawn)
        assert {any(map(str.isdigit, q.asked)) for q in drawn} == {True, False}
        assert all(question.answer for question in drawn)
        assert drawn == read_questions("generators:sort+calculation", 40, 0)
        assert drawn != read_questions("generators:sort+calculation", 40, 1)

    def test_tasks_may_have_weights(self):
        drawn = read_questions("generators:sort*9+calculation", 600, 0)
        sums = sum(any(map(str.isdigit, question.asked)) for question in drawn)
        share = EVERYTHING["calculation"] / (9 + EVERYTHING["calculation"])
        assert abs(sums - 600 * share) < 4 * (600 * share) ** 0.5

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            ("generators:sotr", r"no task 'sotr'.*sort"),
            ("generators:sort*x", r"'sort\*x'.*a weight above 0"),
            ("generators:sort*0", r"'sort\*0'.*a weight above 0"),
        ],
    )
    def test_what_is_no_task_or_weight_is_named(self, data, words):
        with pytest.raises(DllmError, match=words):
            read_questions(data, 4, 0)

    def test_a_file(self, tmp_path):
        file = tmp_path / "p.jsonl"
        lines = [{"prompt": "one", "answer": "two"}, {"prompt": [{"role": "user", "content": "x"}]}]
        file.write_text("\n".join(map(json.dumps, lines)))
        asked = [{"role": "user", "content": "x"}]
        assert read_questions(str(file), None, 0) == [Question("one", "two"), Question(asked)]
        assert len(read_questions(str(file), 1, 0)) == 1

    def test_a_question_goes_into_the_chat_template(self, student):
        text = student.text
        turn = [{"role": "user", "content": "one two"}]
        for asked in ("one two", turn):
            question = Question(asked)
            assert question.prompt(text) == text.chat(turn)
            both = question.prompt(text) + question.reply(text, "three")
            assert text.decode(both, skip_special_tokens=False).endswith(" three")


class TestJob:
    def test_the_same_options_go_on_and_others_are_refused(self, tmp_path):
        job = Job("mdlm", tmp_path / "run", model="m", steps=3)
        job.check()
        job.note()
        job.check()
        with pytest.raises(DllmError, match=r"steps=3, but this one has 4.*--out"):
            Job("mdlm", tmp_path / "run", model="m", steps=4).check()

    def test_what_a_user_changes_goes_over_the_recipes_defaults(self, tmp_path):
        default = TrainConfig(batch_size=5, lr=0.1, warmup=50, parts=2)
        found = Job("r", tmp_path, lr=0.2, seed=7).train_config(default, 20)
        assert found == TrainConfig(5, 0.2, warmup=3, decay=20, seed=7, parts=2)

    def test_answers_of_the_data(self, tmp_path, student):
        job = Job("mdlm", tmp_path, data="generators:copy", examples=5)
        pairs = job.answers(student.text, silent)
        assert [student.text.decode(p.answer) for p in pairs] == [q.answer for q in job.questions()]

    def test_missing_answers_are_counted(self, tmp_path, student):
        file = tmp_path / "p.txt"
        file.write_text("one\ntwo\n")
        with pytest.raises(DllmError, match=r"2 of 2 prompts have no answer.*--distill-from"):
            Job("mdlm", tmp_path, data=str(file)).answers(student.text, silent)

    def test_a_students_own_answers_are_kept(self, tmp_path, student):
        file = tmp_path / "p.txt"
        file.write_text("one two three\nten\n")
        job = Job("r", tmp_path, data=str(file))
        student = replace(student, model=echo(student.source).model)
        first = job.trajectories(student, DecodeConfig(), silent)
        assert [student.text.decode(pair.answer) for pair in first] == ["ten", "one two three"]
        made = (tmp_path / "rollouts.jsonl").stat().st_mtime_ns
        assert job.trajectories(student, DecodeConfig(), silent) == first
        assert (tmp_path / "rollouts.jsonl").stat().st_mtime_ns == made
        with pytest.raises(DllmError, match="another model "):
            job.trajectories(student, DecodeConfig(sampler="entropy"), silent)

    def test_answers_that_a_grader_refuses_are_left_out(self, tmp_path, student, monkeypatch):
        job = Job("r", tmp_path, data="generators:copy", examples=9)
        student = replace(student, model=echo(student.source).model)
        with pytest.raises(DllmError, match="not known to be wrong"):
            job.trajectories(student, DecodeConfig(), silent)  # it repeats the question
        kept = {question.asked for question in job.questions()[:4]}
        monkeypatch.setattr(Question, "is_wrong", lambda self, reply: self.asked not in kept)
        pairs = job.trajectories(student, DecodeConfig(), silent)
        assert {student.text.decode(pair.answer) for pair in pairs} == kept

    def test_graders_judge_replies(self):
        (question,) = read_questions("generators:calculation", 1, 0)
        assert not question.is_wrong(question.answer)
        assert question.is_wrong(question.answer + "9")
        assert not Question("one", "two").is_wrong("three")  # nobody knows

    def test_a_missing_model(self, tmp_path):
        with pytest.raises(DllmError, match="--model is missing"):
            Job("certainty", tmp_path).student("a model")

    def test_bundled_recipes_take_no_options(self, tmp_path):
        with pytest.raises(DllmError, match=r"--steps 4.*'mdlm'"):
            Job("mdlm", tmp_path, steps=4).refuse_options()


class TestDistilled:
    @pytest.fixture
    def other(self, tmp_path):
        """A Llama that answers in other ids than the student's."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        words = ["</s>", "[UNK]", *"abcdefg"]
        vocab = {word: i for i, word in enumerate(words)}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(
            tmp_path / "ar"
        )
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=0,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        model.lm_head.weight.data[0] = 0  # or it would end every answer at once
        model.save_pretrained(tmp_path / "ar")
        return str(tmp_path / "ar")

    def test_answers_come_in_the_students_tokens(self, tmp_path, student, other):
        file = tmp_path / "p.txt"
        file.write_text("a b\nc d e f g\nb\n")
        job = Job("r", tmp_path, data=str(file), distill_from=other, max_new_tokens=5)
        pairs = job.answers(student.text, silent)
        lines = (tmp_path / "rollouts.jsonl").read_text().splitlines()[1:]
        theirs = [json.loads(line)["answer"] for line in lines]
        assert len(pairs) == sum(map(bool, theirs))
        for pair in pairs:
            assert set(student.text.decode(pair.answer).replace("[UNK]", "")) <= set("abcdefg ")

    def test_cut_off_answers_can_be_left_out(self, tmp_path, student, other):
        file = tmp_path / "p.txt"
        file.write_text("a b\n")
        job = Job("r", tmp_path, data=str(file), distill_from=other, max_new_tokens=1)
        (pair,) = job.answers(student.text, silent)
        assert not pair.whole
        with pytest.raises(DllmError, match="max_new_tokens=1 "):
            job.answers(student.text, silent, whole=True)
