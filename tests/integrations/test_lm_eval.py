"""The class that lm-evaluation-harness sees. Needs the extra `lm-eval`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import dllm
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.likelihood import LikelihoodRequest, log_likelihoods
from dllm.eval.tasks.datasets import DATASETS, examples
from dllm.integrations.lm_eval import DiffusionLM
from dllm.integrations.lm_eval_options import stable_id
from tests.fakes import EOS, EOT, PAD, FakeModel, FakeText, Out, hashed, leaning

BUDGET = {"max_gen_toks": 6, "until": []}
CONTEXTS = ["abcd", "a", "ddca", "bb", "cab", "dddddd", "ac"]


def letters() -> Out:
    """What is proposed is never a token without text, so that an answer's length shows."""
    out = hashed()
    for token in (PAD, EOS, EOT):
        out = leaning(token, -60, out)
    return out


def model(engine: Engine | None = None, **options: Any) -> DiffusionLM:
    engine = engine or Engine(FakeModel(letters()), FakeText())
    return DiffusionLM(pretrained=engine, **options)


def instance(
    kind: str, *arguments: Any, doc: int = 0, index: int = 0, task: str = "letters"
) -> Instance:
    return Instance(kind, {}, arguments, index, metadata=(task, doc, 1))


def generations(contexts: Sequence[str], **arguments: Any) -> list[Instance]:
    return [
        instance("generate_until", context, {**BUDGET, **arguments}, doc=doc)
        for doc, context in enumerate(contexts)
    ]


def test_it_is_registered_by_its_name():
    assert get_model("dllm") is DiffusionLM


def test_an_answer_depends_on_its_request_alone():
    """Neither on order, nor on batch size, nor on requests with other arguments."""
    requests = generations(CONTEXTS) + generations(CONTEXTS, max_gen_toks=4)
    options = {"temperature": 1.0, "sampler": "threshold:threshold=0.3", "seed": 3}
    expected = model(batch_size=1, **options).generate_until(requests)
    assert len(set(expected)) > len(CONTEXTS)
    assert {len(answer) for answer in expected[len(CONTEXTS) :]} != {len(expected[0])}
    order = random.Random(0).sample(range(len(requests)), len(requests))
    for size in (3, 100):
        found = model(batch_size=size, **options).generate_until([requests[i] for i in order])
        assert found == [expected[i] for i in order]
    assert model(**{**options, "seed": 4}).generate_until(requests) != expected


def test_it_decodes_as_the_engine_does():
    lm = model(sampler="quota:steps=3", max_new_tokens=9)
    (found,) = lm.generate_until([instance("generate_until", "abc", {"until": ["zz"]})])
    output = lm.engine.generate(
        [FakeText().encode("abc")], sampler="quota:steps=3", max_new_tokens=9
    )[0]
    assert found == output.text


def test_repeats_of_a_request_are_drawn_anew_and_copies_for_other_processes_do_not_count():
    lm = model(temperature=1.5, batch_size=4)
    (request,) = generations(["abc"])
    request.repeats = 3
    answers = lm.generate_until([request] * 4)
    assert len(set(answers)) > 1
    assert sorted(cost.repeat for cost in lm.costs) == [0, 1, 2]
    assert answers == model(temperature=1.5, batch_size=1).generate_until([request] * 4)


def test_generation_arguments_reach_the_engine():
    lm = model()
    answers = lm.generate_until(generations(["abc"], max_gen_toks=5, steps=1, sampler="quota"))
    assert [(c.nfe, c.committed, c.finish) for c in lm.costs] == [(1, 5, "length")]
    stop = answers[0][1]
    (cut,) = lm.generate_until(
        generations(["abc"], max_gen_toks=5, until=[stop], steps=1, sampler="quota")
    )
    assert cut == answers[0][: answers[0].index(stop)]
    assert lm.costs[-1].finish == "stop"
    with pytest.raises(DllmError, match="unknown generation argument 'num_beams'"):
        lm.generate_until(generations(["abc"], num_beams=2))


def test_what_requests_took_is_told_once_and_written_down(tmp_path):
    record = tmp_path / "new" / "answers.jsonl"
    lm = model(sampler="quota:steps=2", record=str(record), batch_size=2, mc_num=5)
    other = instance("generate_until", "a", {**BUDGET, "max_gen_toks": 2}, task="other")
    lm.generate_until([other, *generations(CONTEXTS)])
    lm.loglikelihood([instance("loglikelihood", "ab", "cdd", doc=4, index=1)])
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["doc"] for line in lines] == [*range(len(CONTEXTS)), 0, 4]
    assert [line["prompt_tokens"] for line in lines] == [*map(len, CONTEXTS), 1, 2]
    assert lines[0] == {
        "task": "letters",
        "doc": 0,
        "index": 0,
        "repeat": 0,
        "kind": "generate_until",
        "nfe": 2,
        "tokens": 6,
        "committed": 6,
        "prompt_tokens": 4,
        "finish": "length",
    }
    info = lm.get_model_info()["dllm"]
    json.dumps(info)
    assert info["options"]["sampler"] == "quota:steps=2"
    n = len(CONTEXTS)
    assert info["tasks"] == [
        {
            "task": "letters",
            "kind": "generate_until",
            "requests": n,
            "forwards": 2 * n,
            "tokens": 6 * n,
            "committed": 6 * n,
            "tokens_per_forward": 3,
            "committed_per_forward": 3,
        },
        {
            "task": "letters",
            "kind": "loglikelihood",
            "requests": 1,
            "forwards": 5,
            "tokens": 3,
        },
        {
            "task": "other",
            "kind": "generate_until",
            "requests": 1,
            "forwards": 2,
            "tokens": 2,
            "committed": 2,
            "tokens_per_forward": 1,
            "committed_per_forward": 1,
        },
    ]
    assert lm.get_model_info()["dllm"]["tasks"] == []
    lm.record.close()  # a log has one writer
    model(record=str(record))
    assert record.read_text() == ""


def test_likelihoods_are_those_of_the_estimator_with_the_context_as_seed():
    lm = model(mc_num=3, seed=7, batch_size=4)
    encode = FakeText().encode
    cases = [("abc", "dda"), ("abc", "acda"), ("a\n", "cd"), ("", "abc"), ("\n", "dd")]
    split = [("abc", "dda"), ("abc", "acda"), ("a", "\ncd"), ("", "abc"), ("", "\ndd")]
    found = lm.loglikelihood([instance("loglikelihood", *case) for case in cases])
    pairs = [
        LikelihoodRequest(encode(prompt), encode(answer), stable_id(7, context))
        for (context, _), (prompt, answer) in zip(cases, split, strict=True)
    ]
    expected = log_likelihoods(lm.engine.model, pairs, draws=3)
    assert [value for value, _ in found] == pytest.approx(expected)
    assert [greedy for _, greedy in found] == [False] * 5
    turned = lm.loglikelihood([instance("loglikelihood", *case) for case in cases[::-1]])
    assert [value for value, _ in turned[::-1]] == pytest.approx(expected)


def test_guidance_reaches_the_likelihood_and_doubles_its_forwards():
    plain, guided = model(mc_num=3), model(mc_num=3, cfg_scale=1.5)
    request = [instance("loglikelihood", "abc", "dda")]
    assert plain.loglikelihood(request) != guided.loglikelihood(request)
    assert (plain.costs[0].nfe, guided.costs[0].nfe) == (3, 6)


def test_a_whole_text_is_scored_given_nothing():
    lm = model(mc_num=3)
    found = lm.loglikelihood_rolling([instance("loglikelihood_rolling", "abcd")])
    pair = LikelihoodRequest([], FakeText().encode("abcd"), stable_id(0, "abcd"))
    assert found == pytest.approx(log_likelihoods(lm.engine.model, [pair], draws=3))
    with pytest.raises(DllmError, match="300 tokens; the model has 256"):
        lm.loglikelihood_rolling([instance("loglikelihood_rolling", "a" * 300)])


def test_greedy_is_checked_on_request():
    lm = model(check_greedy=True, max_new_tokens=3, sampler="quota", block_length=0)
    (answer,) = lm.generate_until(generations(["abc"], max_gen_toks=3))
    other = ("b" if answer[0] == "a" else "a") + answer[1:]
    cases = [instance("loglikelihood", "abc", text) for text in (answer, other)]
    assert len(FakeText().encode(answer)) == 3
    assert [greedy for _, greedy in lm.loglikelihood(cases)] == [True, False]
    assert lm.costs[-1].nfe == 2**3 - 1 + 3


def test_a_context_that_is_too_long_keeps_its_end(caplog):
    lm = model()
    ends = "abcd" * 80
    answers = lm.generate_until(generations([ends, ends[-250:]]))
    assert answers[0] == answers[1]
    assert [cost.prompt_tokens for cost in lm.costs] == [250, 250]
    assert "a context of 320 tokens loses its first 70" in caplog.text


def test_the_conversation_is_rendered_by_the_checkpoint():
    lm = model(dllm.load("tiny"))
    turns = [{"role": "user", "content": "Sort: b, a"}]
    shown = lm.apply_chat_template(turns)
    assert lm.text.encode(shown) == lm.text.chat(turns)
    begun = [*turns, {"role": "assistant", "content": "The list is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == shown + "The list is"
    assert "<|assistant|>" in lm.chat_template(True)
    assert "/" not in lm.tokenizer_name


def test_ctrl_c_ends_the_run():
    lm = model(Engine(FakeModel(hashed(), interrupt_at=1), FakeText()))
    with pytest.raises(KeyboardInterrupt):
        lm.generate_until(generations(["abc"]))


def test_answers_so_far_go_into_the_cache_of_lm_eval():
    lm, kept = model(), []
    lm.cache_hook.add_partial = lambda *entry: kept.append(entry)
    (answer,) = lm.generate_until(requests := generations(["abc"]))
    assert kept.pop() == ("generate_until", requests[0].args, answer)
    requests = [instance("loglikelihood", "a", "b"), instance("loglikelihood_rolling", "ab")]
    scored = lm.loglikelihood(requests[:1])[0]
    rolled = lm.loglikelihood_rolling(requests[1:])[0]
    assert kept == [
        ("loglikelihood", requests[0].args, scored),
        ("loglikelihood_rolling", requests[1].args, rolled),
    ]


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        (Engine(FakeModel()), {}, "load the engine with a tokenizer"),
        (None, {"peft": "a"}, "unknown model argument 'peft'"),
        (None, {"sampler": "nobody"}, "unknown sampler 'nobody'"),
        (None, {"cache": "nobody"}, "unknown cache policy 'nobody'"),
    ],
)
def test_what_cannot_be_run_is_told_at_once(engine, options, message):
    with pytest.raises(DllmError, match=message):
        model(engine, **options)


TASK = """
task: turned
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 32}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task of lm-eval on 8 held-out prompts of the bundled model, offline."""
    found = examples(DATASETS["reverse"], 0, held_out=True, sizes=(4,))
    rows = [next(found) for _ in range(8)]
    lines = [json.dumps({"prompt": row.prompt, "answer": row.answer}) for row in rows]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "turned.yaml").write_text(TASK.replace("DATA", str(tmp_path / "data.jsonl")))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_lm_eval_runs_it_and_its_results_hold_the_forwards(folder):
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    record = folder / "answers.jsonl"
    options = {"sampler": "quota:steps=16", "batch_size": 3, "record": str(record)}
    lm = DiffusionLM(pretrained="tiny", device="cuda:0", **options)
    results = simple_evaluate(
        lm, tasks=["turned"], task_manager=tasks, apply_chat_template=True, bootstrap_iters=0
    )
    assert results["results"]["turned"]["exact_match,none"] == 1
    (sums,) = results["config"]["dllm"]["tasks"]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["doc"] for line in lines] == list(range(8))
    assert sums["forwards"] == sum(line["nfe"] for line in lines) > 8 * 8
    assert sums["committed_per_forward"] == pytest.approx(2)
    assert sums["tokens"] == 8 * 8  # four items, three commas, the end
    assert sums["tokens_per_forward"] == sums["tokens"] / sums["forwards"]


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(folder):
    program = [*"-m dllm eval lm-eval --model dllm --tasks turned --apply_chat_template".split()]
    program += ["--include_path", str(folder), "--log_samples", "--limit", "7"]
    program += ["--gen_kwargs", "do_sample=True,temperature=3"]
    found = []
    for count in (1, 2):
        out = folder / str(count)
        record = f"record={out}/answers.jsonl"
        options = ["--model_args", f"pretrained=tiny,{record}", "--output_path", str(out)]
        spread = f"-m torch.distributed.run --standalone --nproc-per-node {count}".split()
        subprocess.run(
            [sys.executable, *spread, *program, *options], check=True, capture_output=True
        )
        (results,) = out.glob("tiny/results*")
        (samples,) = out.glob("tiny/samples*")
        answers = [json.loads(line) for line in samples.read_text().splitlines()]
        found.append(
            (
                json.loads(results.read_text())["config"]["dllm"]["tasks"],
                (out / "answers.jsonl").read_text(),
                {a["doc_id"]: a["resps"][0][0] for a in answers},
            )
        )
    assert found[0] == found[1]
    assert len(set(found[0][2].values())) == 7
    assert found[0][0][0]["requests"] == 7
