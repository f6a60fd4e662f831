"""PyTorch's zip files, written and read without PyTorch; other files are refused, and not run."""

import argparse
import io
import pickle
import re
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest

from capret_jax.checkpoints.torch_file import read_torch_file, write_torch_file
from capret_jax.errors import InputError
from tests.conftest import DATA


class MaliciousObject:
    """An object whose unpickling calls a function."""

    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 4)).astype(np.float32)
    return {
        "matrix": matrix,
        "transposed": matrix.T,
        "scalar": np.full((), 0.07, np.float32),
        "index": np.arange(6).reshape(2, 3),
        "half": matrix.astype(np.float16),
        "brain": matrix.astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 2), np.float32),
    }


def assert_equal_states(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_a_written_file_is_read_again(state, tmp_path):
    write_torch_file(tmp_path / "x.th", state)
    assert_equal_states(read_torch_file(tmp_path / "x.th")["model"], state)


def test_arrays_are_aligned_for_memory_mapping(state, tmp_path):
    write_torch_file(tmp_path / "x.th", state)
    with zipfile.ZipFile(tmp_path / "x.th") as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    starts = [e.header_offset + 30 + len(e.filename) + len(e.extra) for e in entries]
    assert len(starts) == len(state)
    assert not any(start % 64 for start in starts)


def test_an_array_under_two_names_is_written_once(tmp_path):
    large = np.zeros(10_000, np.float32)
    write_torch_file(tmp_path / "x.th", {"table": large, "decoder": large})
    assert (tmp_path / "x.th").stat().st_size < 1.5 * large.nbytes


@pytest.mark.torch
def test_torch_reads_a_written_file(state, tmp_path):
    torch = pytest.importorskip("torch")
    write_torch_file(tmp_path / "x.th", state | {"tied": state["matrix"]})
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "x.th", weights_only=True, mmap=mmap)["model"]
        assert loaded["tied"].data_ptr() == loaded["matrix"].data_ptr()
        assert loaded.pop("brain").dtype == torch.bfloat16
        assert_equal_states(
            {name: tensor.numpy() for name, tensor in loaded.items()},
            {name: array for name, array in state.items() if name != "brain"}
            | {"tied": state["matrix"]},
        )


@pytest.mark.torch
def test_a_file_with_command_line_arguments_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    args = argparse.Namespace(rate=0.1)
    torch.save({"model": {"w": torch.ones(2)}, "args": args, "epoch": 3}, tmp_path / "x.th")
    np.testing.assert_array_equal(read_torch_file(tmp_path / "x.th")["model"]["w"], [1, 1])


def zip_with_pickle(path, content: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)


def test_a_pickle_that_would_run_code_is_refused_and_named(tmp_path, capsys):
    path = tmp_path / "evil.th"
    zip_with_pickle(path, pickle.dumps({"model": MaliciousObject()}))
    with pytest.raises(InputError, match=r"evil\.th was refused: .* names builtins\.print"):
        read_torch_file(path)
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"model": MaliciousObject()}, protocol=protocol))
        with pytest.raises(InputError, match=r"bare pickle.*names .*builtin.*\.print"):
            read_torch_file(path)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("fraction", [0.999, 0.5, 0.01])
def test_a_file_cut_short_is_refused(tmp_path, fraction):
    whole = (DATA / "x2vlm_tiny_vqa.th").read_bytes()
    (tmp_path / "cut.th").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(InputError, match=r"cut\.th is cut short: [\d,]+ bytes"):
        read_torch_file(tmp_path / "cut.th")


def test_flipped_bytes_are_refused(tmp_path):
    data = bytearray((DATA / "x2vlm_tiny_vqa.th").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    (tmp_path / "bad.th").write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.th is damaged: BadZipFile"):
        read_torch_file(tmp_path / "bad.th")


def test_the_error_of_a_legacy_tar_file_tells_how_to_save_it_again(tmp_path):
    with tarfile.open(tmp_path / "old.th", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    message = r"tar archive of torch before 0\.1\.10.*torch\.save\(torch\.load\(old"
    with pytest.raises(InputError, match=message):
        read_torch_file(tmp_path / "old.th")


def test_a_tar_archive_with_a_checkpoint_is_refused(tmp_path):
    with tarfile.open(tmp_path / "release.tar", "w") as archive:
        archive.add(DATA / "x2vlm_tiny_vqa.th", "run/checkpoint_best.pth")
    with pytest.raises(InputError, match=r"\(run/checkpoint_best\.pth, \.\.\.\); unpack it"):
        read_torch_file(tmp_path / "release.tar")


def test_the_error_of_a_legacy_pickle_tells_how_to_save_it_again(tmp_path):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    (tmp_path / "old.th").write_bytes(magic + pickle.dumps(1001, protocol=2) + b"more")
    with pytest.raises(InputError, match=r"before 1\.6.*torch\.save\(torch\.load\(old"):
        read_torch_file(tmp_path / "old.th")


def write_stored(path, pickled: bytes, **entries: bytes):
    """Writes a torch file with this pickle and these storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + pickled + b".")
        for key, data in entries.items():
            archive.writestr(f"x/data/{key}", data)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "uint32", "int8", "complex64"])
def test_tensors_of_all_dtypes_are_read(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    values = torch.tensor([0, 1, 2, 4]).to(getattr(torch, dtype))
    torch.save({"w": torch.nn.Parameter(values, requires_grad=False)}, tmp_path / "x.th")
    array = read_torch_file(tmp_path / "x.th")["w"]
    assert array.dtype.name == dtype
    np.testing.assert_array_equal(array.astype(np.complex64), [0, 1, 2, 4])


@pytest.mark.torch
def test_the_state_dict_of_a_module_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(2)
    torch.save(module.state_dict(), tmp_path / "x.th")
    content = read_torch_file(tmp_path / "x.th")
    assert list(content) == list(module.state_dict())


def test_compressed_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.th", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(1 << 20))
    with pytest.raises(InputError, match=r"bomb\.th compresses x/data\.pkl.*zip -0"):
        read_torch_file(tmp_path / "bomb.th")


def test_a_huge_pickle_is_refused(tmp_path):
    write_stored(tmp_path / "huge.th", b"N" * (17 << 20))
    with pytest.raises(InputError, match=r"has a pickle of 17,825,795 bytes"):
        read_torch_file(tmp_path / "huge.th")


# Each would take gigabytes or for ever in an ordinary unpickler.
@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(b"]r\xff\xff\xff\x7f", id="index"),
        pytest.param(b"\x96" + (1 << 40).to_bytes(8, "little"), id="bytearray"),
        pytest.param(b")" + b"q\x00h\x00\x86" * 64 + b"\x8f(q\x01h\x01\x90", id="set"),
        pytest.param(b")" + b"q\x00h\x00\x86" * 64 + b"q\x01}h\x01Ns", id="key"),
        pytest.param(b"]" + b"q\x00(h\x00h\x00l" * 64, id="nested"),
        pytest.param(b")" + b"q\x00h\x00\x86" * 64 + b"Q", id="reference"),
    ],
)
def test_small_files_take_little_memory_and_time(tmp_path, pickled):
    write_stored(tmp_path / "bomb.th", pickled)
    try:
        assert isinstance(read_torch_file(tmp_path / "bomb.th"), list)
    except InputError as error:
        assert re.search(r"bomb\.th is damaged: \w+", str(error))


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    write_torch_file(tmp_path / "x.th", {"w": np.ones(4, np.float32)})
    with zipfile.ZipFile(tmp_path / "x.th") as archive:
        pickled = archive.read("x/data.pkl")
    assert pickled.count(b"K\x04\x85") == 1
    write_stored(
        tmp_path / "y.th", pickled[2:-1].replace(b"K\x04\x85", b"K\x05\x85"), **{"0": bytes(16)}
    )
    with pytest.raises(InputError, match=r"y\.th is damaged: \w+Error"):
        read_torch_file(tmp_path / "y.th")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.th").write_text("not a checkpoint")
    with pytest.raises(InputError, match=r"notes\.th is neither"):
        read_torch_file(tmp_path / "notes.th")
    with zipfile.ZipFile(tmp_path / "empty.th", "w"):
        pass
    with pytest.raises(InputError, match=r"empty\.th is not a readable torch file"):
        read_torch_file(tmp_path / "empty.th")
