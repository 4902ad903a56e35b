"""Questions stay: bundled models were trained on them, committed results ask them."""

import itertools
import json
import zlib

import pytest

from dllm.eval import tasks as suite
from dllm.eval.tasks.datasets import DATASETS, examples

TRAINED = {
    "copy": 1391198494,
    "reverse": 154099391,
    "sort": 3042995021,
    "shuffle": 1742119451,
    "replace_index": 3916668335,
    "insert_index": 3786422236,
    "remove_index": 3322133508,
    "replace_random": 3746085135,
    "insert_random": 522202891,
    "remove_random": 299725119,
    "word_problem": 3337876587,
    "calculation": 2950027186,
    "latin": 4044004427,
    "sudoku": 3494901289,
    "json": 743121558,
    "records": 1379469314,
    "table": 1537851276,
    "function": 1621933884,
}
ASKED = {
    "copy": 3264443662,
    "reverse": 941284008,
    "sort": 1436108255,
    "shuffle": 1202945700,
    "replace_index": 3667534514,
    "insert_index": 2520546522,
    "remove_index": 69899905,
    "replace_random": 3291689328,
    "insert_random": 101486627,
    "remove_random": 3086552230,
    "latin_square": 1280871939,
    "sudoku": 2369013862,
    "cumulative_sums": 2930275264,
    "words_to_sentence": 2506158510,
    "word_problem": 1800123510,
    "calculation": 2418961410,
    "latin_fill": 2277949579,
    "json": 2915872313,
    "records": 2235112283,
    "table": 3216387503,
    "function": 3547928528,
    "copy:wording=short,n=3+4+5+6": 890998483,
    "reverse:wording=short,n=3+4+5+6": 2556943002,
    "sort:wording=short,n=3+4+5+6": 430960560,
    "shuffle:wording=short,n=3+4+5+6": 3777351037,
    "replace_index:wording=short,n=3+4+5+6": 1576528132,
    "insert_index:wording=short,n=3+4+5+6": 3382700439,
    "remove_index:wording=short,n=3+4+5+6": 2094494177,
    "replace_random:wording=short,n=3+4+5+6": 1010896056,
    "insert_random:wording=short,n=3+4+5+6": 383006471,
    "remove_random:wording=short,n=3+4+5+6": 1631466523,
    "sudoku:wording=short,n=2+3+4+5+6+7": 2755430952,
    "copy:vocabulary=letters,shots=2": 704558883,
}


@pytest.mark.parametrize("name", DATASETS)
def test_what_the_bundled_models_were_trained_on(name):
    drawn = itertools.islice(examples(DATASETS[name], 0, held_out=False), 100)
    text = "".join(f"{each.prompt}={each.answer}" for each in drawn)
    assert zlib.crc32(text.encode()) == TRAINED[name]


@pytest.mark.parametrize("spec", ASKED)
def test_what_the_evaluation_asks(spec):
    task = suite.task_of(spec)
    drawn = [
        suite.draw(task, n, seed, i).as_dict() for n in task.n for seed in (0, 7) for i in range(4)
    ]
    assert zlib.crc32(json.dumps(drawn).encode()) == ASKED[spec]
