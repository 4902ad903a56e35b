"""Presets by name and by file, and sampler="auto"."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from dllm import registry as specs
from dllm.config import ConfigError, DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.presets import PRESETS, TUNED, preset_options, read_preset
from dllm.samplers.fastdllm import ThresholdRule
from tests.cache.models import decoder
from tests.echo import echo, write_tiny
from tests.fakes import FakeModel, FakeText

GOOD = {"format": "dllm-preset-1", "options": {"sampler": "threshold:threshold=0.7"}}


class Ran(ThresholdRule):
    """Code that a file must not name."""


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_made_of_known_parts(name, family):
    DecodeConfig().replace(**preset_options(name, family)).check_components()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "prophet"])
@pytest.mark.parametrize("shift", [0, 1])
def test_every_preset_fills_the_canvas(name, shift):
    options = {"preset": name, "max_new_tokens": 9}
    model = decoder(shift, 4 if preset_options(name).get("cache") == "block" else None)
    for output in Engine(model, FakeText()).generate([[3], [4, 6]], **options):
        assert output.finish_reason in ("eos", "length")
        assert output.nfe <= 9


def test_prophets_preset_puts_the_released_suffix_into_the_answer(tmp_path):
    engine = echo(write_tiny(tmp_path))
    output = engine.generate("one two three", preset="prophet", max_new_tokens=220, history=True)
    assert engine.config(preset="prophet").prefilled == ("200:The answer is",)
    assert output.nfe >= 1


def test_dream_has_values_of_its_own():
    assert "relaxed=0.75" in preset_options("localleap", "llada")["sampler"]
    assert "relaxed=0.8" in preset_options("localleap", "dream")["sampler"]
    assert preset_options("adablock", "dream")["sampler"] == "threshold:threshold=0.9"


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown preset 'leap'.*localleap.*or a \.json file"):
        preset_options("leap")


def test_options_win_over_the_preset_and_the_preset_over_the_config():
    engine = Engine(FakeModel())
    base = DecodeConfig(sampler="quota", block_length=3, seed=5)
    config = engine.config(base, preset="klass", block_length=7)
    assert config.sampler.startswith("klass:")
    assert (config.block_length, config.seed) == (7, 5)
    assert engine.config(base, preset="klass").block_length == 64


class TestFile:
    def write(self, folder, content):
        path = folder / "mine.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def test_a_file_is_a_preset(self, tmp_path):
        path = self.write(tmp_path, GOOD)
        assert read_preset(path) == GOOD["options"]
        assert Engine(FakeModel()).config(preset=str(path)).sampler == "threshold:threshold=0.7"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "cannot read the preset"),
            ("[]", "is no preset: expected"),
            ({"options": {}}, "is no preset: expected"),
            ({**GOOD, "options": {"sampelr": "quota"}}, "unknown option 'sampelr'"),
            ({"format": GOOD["format"]}, "no options"),
        ],
    )
    def test_what_is_none_is_one_clear_error(self, tmp_path, content, message):
        with pytest.raises(ConfigError, match=message):
            read_preset(self.write(tmp_path, content))

    @pytest.mark.parametrize(
        ("option", "spec"),
        [
            ("sampler", "this:s"),
            ("sampler", "this:s:threshold=0.5"),
            ("sampler", "scheduler:scheduler=this.s"),
            ("sampler", "scheduler:scheduler=this:s,mask_token_id=3"),
            ("sampler", "dllm.samplers.quota:Quota"),
            ("planner", "this:s"),
            ("transform", "this:s"),
            ("stop_rule", "this:s"),
            ("speculator", "this:s"),
            ("cache", "this:s"),
            ("sampler", {"select": 1}),
            ("sampler", None),
            ("sampler", "auto"),
        ],
    )
    def test_no_spec_in_it_names_code(self, tmp_path, option, spec):
        path = self.write(tmp_path, {**GOOD, "options": {option: spec}})
        with pytest.raises(ConfigError, match=r"mine\.json.*expected|may name no|stands for"):
            read_preset(path)
        (tmp_path / TUNED).write_text(path.read_text())
        with pytest.raises(ConfigError):
            read_preset(tmp_path / TUNED)
        assert "this" not in sys.modules  # of the standard library; nobody else imports it

    def test_the_users_own_word_still_names_code(self):
        sampler = f"{__name__}:Ran"
        assert isinstance(DecodeConfig(sampler=sampler).make("sampler"), Ran)

    def test_it_may_name_what_an_installed_package_brings(self, tmp_path, monkeypatch):
        point = EntryPoint("mine", f"{__name__}:Ran", "dllm.samplers")
        monkeypatch.setattr(specs, "entry_points", lambda group: EntryPoints([point]))
        path = self.write(tmp_path, {**GOOD, "options": {"sampler": "mine"}})
        assert read_preset(path) == {"sampler": "mine"}

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ConfigError, match=r"cannot read the preset: .*none\.json"):
            preset_options(str(tmp_path / "none.json"))


class TestAuto:
    def test_is_what_was_tuned(self):
        engine = Engine(FakeModel(), tuned={"sampler": "quota", "block_length": 4})
        config = engine.config(sampler="auto", max_new_tokens=8)
        assert (config.sampler, config.block_length, config.max_new_tokens) == ("quota", 4, 8)
        assert engine.generate([3], sampler="auto", max_new_tokens=8).nfe > 0

    def test_without_tuning_says_how(self):
        with pytest.raises(ConfigError, match=r"not tuned; run `dllm tune`.*preset\.json"):
            Engine(FakeModel()).generate([3], sampler="auto")

    def test_is_read_from_the_checkpoints_directory(self, tmp_path):
        import dllm

        folder = write_tiny(tmp_path)
        assert dllm.load(folder).tuned is None
        (folder / TUNED).write_text(json.dumps(GOOD))
        assert dllm.load(folder).tuned == GOOD["options"]
        (folder / TUNED).write_text("{")
        with pytest.raises(DllmError, match="cannot read the preset"):
            dllm.load(folder)
