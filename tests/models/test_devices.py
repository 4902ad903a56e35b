"""Which device, which dtype, and whether the weights fit: one error that says what there is."""

import pytest
import torch

from dllm.errors import LoadError
from dllm.models import checkpoint_reader, devices
from dllm.models.devices import check_memory, free_memory, pick_device, pick_dtype
from dllm.models.loading import load_model
from tests.models.checkpoints import make

CPU, MPS = torch.device("cpu"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """A machine with two GPUs of one kind, or one of Apple's."""

    def has(cuda: int = 0, mps: bool = False):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@pytest.mark.parametrize("device", ["cpu", "cpu:0", CPU])
def test_the_cpu(machine, device):
    machine()
    assert pick_device(device).type == "cpu"
    assert pick_device("auto").type == "cpu"


def test_what_the_machine_has(machine):
    machine(cuda=2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    machine(mps=True)
    assert pick_device("mps") == MPS


@pytest.mark.parametrize(
    "device",
    [
        *("gpu", "cuda", "cuda:7", "cpu:3", "mps", "xla", "xpu:0", "meta", "", None, 1.5, [], MPS),
        *("cuda:-1", "cuda:99999999999999", 10**30, "tpu" * 1000),
    ],
)
def test_what_it_has_not(machine, device):
    machine()
    with pytest.raises(LoadError, match=r": this machine has cpu; or give 'auto'$") as caught:
        pick_device(device)
    assert len(str(caught.value)) < 200
    machine(cuda=2, mps=True)
    with pytest.raises(
        LoadError, match="device 'cuda:2': this machine has cpu, cuda:0, cuda:1, mps"
    ):
        pick_device("cuda:2")


@pytest.mark.parametrize("config", [{}, {"dtype": "float16"}, {"torch_dtype": "torch.float16"}])
def test_float16_stays_as_small_on_the_cpu(config):
    assert pick_dtype("auto", config, torch.float16, CPU) == torch.bfloat16
    assert pick_dtype("auto", config, torch.float16, torch.device("cuda")) == torch.float16
    assert pick_dtype("float16", config, torch.float16, CPU) == torch.float16


def test_a_dtype_that_a_device_has_not():
    assert pick_dtype("bfloat16", {}, torch.float64, MPS) == torch.bfloat16
    with pytest.raises(LoadError, match="dtype float64: device 'mps' has float32, bfloat16 and"):
        pick_dtype("auto", {}, torch.float64, MPS)


@pytest.mark.parametrize("named", [["float16"], {"a": 1}, 16, "float8", "x" * 9999])
def test_a_dtype_that_is_none(named):
    with pytest.raises(LoadError, match=r"config.json: dtype .* is unknown; expected auto") as told:
        pick_dtype("auto", {"dtype": named}, torch.float32, CPU)
    assert len(str(told.value)) < 300


def test_too_little_memory_is_told_before_it_is_taken(tmp_path, monkeypatch):
    make(tmp_path, "llada")
    size = sum(p.numel() for p in load_model(tmp_path, device="cpu").parameters())
    monkeypatch.setattr(devices, "free_memory", lambda device: 2 * size)
    load_model(tmp_path, "bfloat16", device="cpu")
    monkeypatch.setattr(checkpoint_reader, "read_weights", lambda *args: pytest.fail("was read"))
    with pytest.raises(LoadError, match=f"^{tmp_path}: .* GB in float32, but cpu has 0.0 GB free$"):
        load_model(tmp_path, device="cpu")


def test_an_unknown_amount_of_memory_is_no_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "free_memory", lambda device: None)
    check_memory(2**60, torch.float32, CPU, tmp_path)


def test_the_least_of_all_limits(monkeypatch, tmp_path):
    tables = {
        "/proc/meminfo": {"MemAvailable:": 1000, "SwapFree:": 24},
        "/proc/self/status": {"VmSize:": 100},
    }
    monkeypatch.setattr(devices, "_table", lambda file: tables[str(file)])
    monkeypatch.setattr(devices, "_groups", lambda: iter([]))
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert free_memory(CPU) == 2**20
    monkeypatch.setattr(devices, "_groups", lambda: iter([7 * 2**20, 2**19]))
    assert free_memory(CPU) == 2**19
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (150 * 1024, -1))
    assert free_memory(CPU) == 50 * 1024


@pytest.mark.parametrize(
    ("line", "root", "names"),
    [
        ("0::/user/job", "", ("memory.max", "memory.current")),
        (
            "4:cpu,memory:/user/job",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
    ],
)
def test_control_groups(tmp_path, monkeypatch, line, root, names):
    """Of both versions: a parent's limit counts as well; pages of files can be given up."""
    job = tmp_path / "fs" / root / "user" / "job"
    job.mkdir(parents=True)
    (tmp_path / "cgroup").write_text(f"3:cpuset:/x\n{line}\n")
    for folder, most, held in ((job, "max", "5"), (job.parent, "1000", "600")):
        (folder / names[0]).write_text(f"{most}\n")
        (folder / names[1]).write_text(held)
        (folder / "memory.stat").write_text("anon 9\nactive_file 30\ninactive_file 70\n")
    monkeypatch.setattr(devices, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(devices, "GROUPS", tmp_path / "fs")
    assert list(devices._groups()) == [1000 - 600 + 100]
