"""Adapters on disk: the trained matrices, and which base they belong to.

adapter.safetensors holds the `.lora_A` and `.lora_B` of every adapted layer, by the checkpoint's
names; adapter.json names the base and says what is needed to put the two together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dllm.errors import DllmError, LoadError
from dllm.files import write_json
from dllm.models.checkpoint_reader import listed, read_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.families import FAMILIES, read_spec
from dllm.models.fingerprint import fingerprint_stored, sample, stored_samples
from dllm.models.hub import BUNDLED, resolve
from dllm.models.lora import Lora, attach, attached, shapes
from dllm.models.stored import ADAPTER, CONFIG, NOT_WHOLE, read_json
from dllm.tensors import opened, write_tensors

FORMAT = "dllm-lora-1"
MATRICES = "adapter.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
TEXTS = ("base", "fingerprint", "sha256")
KEYS = (*TEXTS, "rank", "alpha", "targets")


@dataclass(frozen=True, slots=True)
class Adapter:
    """What adapter.json says. base: a bundled name, a directory (if relative, to the adapter's own)
    or a hub id;  fingerprint: of the base's files;  sha256: of adapter.safetensors;  config: the
    content of a config.json in place of the base's, or None.
    """

    base: str
    fingerprint: str
    sha256: str
    lora: Lora
    config: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        config = {} if self.config is None else {"config": self.config}
        texts = {key: getattr(self, key) for key in TEXTS}
        return {"format": FORMAT, **texts, **asdict(self.lora), **config}


def save_adapter(
    model: Decoder,
    path: str | os.PathLike[str],
    base: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapter attached to `model` as a directory that `load_model` reads.

    base, config: where `model` was loaded from, as given to `resolve` and `load_model`. LoadError
    if they describe another network, or if the first values of a weight outside the adapter are not
    the base's. Each file appears whole or not at all, adapter.json last, which fits no other
    adapter.safetensors than the one written before it.
    """
    folder, source = Path(path), _whole(resolve(base), "base")
    if (folder / CONFIG).exists():
        raise LoadError(f"{folder}: has a {CONFIG}; expected a directory of the adapter's own")
    spec = read_spec(read_json(source / CONFIG) if config is None else config, f"base {base!s}")
    if spec != model.spec:
        raise LoadError(f"base {base!s} is {spec}, but the model is {model.spec}: give its config")
    lora = next(iter(attached(model).values())).lora
    fingerprint = _check_base(model, source)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in _matrices(model).items()}
    write_tensors(folder / MATRICES, tensors, _metadata(lora))
    digest = hashlib.sha256((folder / MATRICES).read_bytes()).hexdigest()
    adapter = Adapter(
        _name(base, folder), fingerprint, digest, lora, None if config is None else dict(config)
    )
    write_json(folder / ADAPTER, adapter.to_json(), indent=2)


def load_adapter(
    path: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    config: Mapping[str, Any] | None = None,
) -> Decoder:
    """The base of the adapter directory `path` with the adapter attached (`load_model` merges it).

    The arguments are `load_model`'s; config takes the place of the adapter's. Raises LoadError
    naming the file for whatever does not fit.
    """
    folder = Path(path)
    adapter = read_adapter(folder)
    source = base_folder(folder, adapter.base)
    if (found := fingerprint_stored(stored_samples(source))) != adapter.fingerprint:
        raise LoadError(
            f"{folder}: made for the base {adapter.base!r} of fingerprint "
            f"{adapter.fingerprint[:12]}, but {source} has {found[:12]}: other weights"
        )
    file = folder / MATRICES
    _check_matrices(file, adapter)
    model = read_checkpoint(source, dtype, device, adapter.config if config is None else config)
    try:
        _compare_shapes(file, _shapes(model, adapter.lora))  # before anything of its size is made
        attach(model, adapter.lora, seed=0)
    except LoadError:
        raise
    except DllmError as error:
        raise LoadError(f"{folder / ADAPTER}: {error}") from error
    _fill(model, file)
    return model


def read_adapter(folder: Path) -> Adapter:
    """adapter.json of the directory `folder`; LoadError for whatever it should not say."""
    file = folder / ADAPTER
    content = read_json(file)
    if (folder / CONFIG).exists():
        raise LoadError(f"{folder}: holds an adapter and a checkpoint ({CONFIG}); expected one")
    if (said := content.pop("format", None)) != FORMAT:
        raise LoadError(f"{file}: format is {said!r}, expected {FORMAT!r}")
    config = content.pop("config", None)
    if not isinstance(config, dict | None):
        raise LoadError(f"{file}: config is {config!r}, expected an object")
    _compare(file, "keys", KEYS, content)
    for key in TEXTS:
        if not isinstance(content[key], str) or not content[key]:
            raise LoadError(f"{file}: {key} is {content[key]!r}, expected text")
    targets = content["targets"]
    targets = tuple(targets) if isinstance(targets, list) else targets
    try:
        lora = Lora(content["rank"], content["alpha"], targets)
    except DllmError as error:
        raise LoadError(f"{file}: {error}") from error
    base, fingerprint, digest = (content[key] for key in TEXTS)
    return Adapter(base, fingerprint, digest, lora, config)


def _compare(file: Path, what: str, expected: Collection[str], found: Collection[str]) -> None:
    lists = [
        listed("missing", [name for name in expected if name not in found]),
        listed("unexpected", [name for name in found if name not in expected]),
    ]
    if any(lists):
        raise LoadError(f"{file}: {what} do not fit: {'; '.join(filter(None, lists))}")


def base_folder(folder: Path, base: str) -> Path:
    """Directory of the checkpoint that the adapter in `folder` calls `base`; LoadError if none."""
    near = os.path.join(folder, base)
    try:
        return _whole(resolve(near if os.path.isdir(near) else base), "its base")
    except LoadError as error:
        raise LoadError(f"{folder / ADAPTER}: {error}") from error


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of the model in `folder` is: an adapter may leave it to its base."""
    own = not (folder / ADAPTER).is_file() or any((folder / name).is_file() for name in TOKENIZERS)
    return folder if own else base_folder(folder, read_adapter(folder).base)


def _whole(folder: Path, what: str) -> Path:
    if (folder / ADAPTER).exists():
        raise LoadError(f"{what} {folder} {NOT_WHOLE}")
    return folder


def _name(base: str | os.PathLike[str], folder: Path) -> str:
    """`base` as it is found from `folder`: what is relative to here becomes relative to there."""
    name = os.fspath(base)
    path = os.path.expanduser(name)
    if name in BUNDLED or not os.path.isdir(path):
        return name
    if os.path.isabs(path):
        return path
    # of the real places: a step up from a link leads elsewhere
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


def _matrices(model: Decoder) -> dict[str, torch.nn.Parameter]:
    """lora_A and lora_B of every adapted layer, by the names of the model's family on disk."""
    family = FAMILIES[model.spec.family]
    return {
        family.tensor_name(f"{name}.{which}"): layer.get_parameter(which)
        for name, layer in attached(model).items()
        for which in ("lora_A", "lora_B")
    }


def _metadata(lora: Lora) -> dict[str, str]:
    return {"format": FORMAT, "rank": str(lora.rank), "alpha": str(lora.alpha)}


def _check_base(model: Decoder, source: Path) -> str:
    """Fingerprint of the checkpoint `source`; LoadError unless the weights of `model` are its."""
    stored = stored_samples(source)
    family, adapted = FAMILIES[model.spec.family], _matrices(model)
    for name, parameter in model.named_parameters():
        key = family.tensor_name(name)
        if key in adapted:
            continue
        values = sample(parameter).values
        if key not in stored or not torch.equal(stored[key].values.to(values.dtype), values):
            raise LoadError(f"{source}: is not the model's base, {key!r} is another tensor there")
    return fingerprint_stored(stored)


def _check_matrices(file: Path, adapter: Adapter) -> None:
    """LoadError unless adapter.safetensors is the file that `adapter` describes."""
    with opened(file, error=LoadError) as tensors:
        about = tensors.metadata() or {}
    for key, value in _metadata(adapter.lora).items():
        if about.get(key) != value:
            raise LoadError(f"{file}: {key} is {about.get(key)!r}, but {ADAPTER} says {value!r}")
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != adapter.sha256:
        raise LoadError(
            f"{file}: is corrupt, or not the file that {ADAPTER} was written with (sha256)"
        )


def _shapes(model: Decoder, lora: Lora) -> dict[str, tuple[int, int]]:
    """Of the matrices of an adapter that is not attached yet, by their names on disk."""
    family = FAMILIES[model.spec.family]
    return {family.tensor_name(name): shape for name, shape in shapes(model, lora).items()}


def _compare_shapes(file: Path, expected: Mapping[str, tuple[int, int]]) -> None:
    """LoadError where the tensors of `file` are not those `expected`; none of them is read."""
    with opened(file, error=LoadError) as stored:
        _compare(file, "tensors", expected.keys(), stored.keys())
        for name, shape in expected.items():
            if (found := stored.get_slice(name).get_shape()) != list(shape):
                raise LoadError(
                    f"{file}: tensor {name!r} has shape {found}, expected {list(shape)}"
                )


@torch.no_grad()
def _fill(model: Decoder, file: Path) -> None:
    """Copy the matrices in `file` into the adapter attached to `model`."""
    with opened(file, error=LoadError) as stored:
        for name, matrix in _matrices(model).items():
            matrix.copy_(stored.get_tensor(name))
