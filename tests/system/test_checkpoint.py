"""Checkpoints are read without pickled code, whole or not at all."""

import os

import pytest
import torch

from clprompt.errors import CheckpointError
from clprompt.seeding import rng_state
from clprompt.system.checkpoint import load_checkpoint, save_checkpoint

PAYLOAD = {
    "tensor": torch.arange(6.0).reshape(2, 3),
    "empty": torch.zeros(0, 4),
    "seen": torch.tensor([True, False]),
    "nested": {"numbers": [1, 2.5, None, True, (3, 4)], "text": "größer", "inf": float("inf")},
}


def write(folder, data):
    """Bytes, or whatever torch.save takes, in the place of a checkpoint."""
    path = folder / "checkpoint" / "state.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data) if isinstance(data, bytes) else torch.save(data, path)
    return path


def test_a_checkpoint_gives_back_tensors_and_plain_values(tmp_path):
    save_checkpoint(tmp_path, PAYLOAD)
    loaded = load_checkpoint(tmp_path)
    for name in ("tensor", "empty", "seen"):
        assert torch.equal(loaded[name], PAYLOAD[name])
        assert loaded[name].dtype == PAYLOAD[name].dtype
    assert loaded["nested"] == PAYLOAD["nested"]


def test_the_global_random_states_pass_through_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path, {"rng": rng_state()})
    assert str(load_checkpoint(tmp_path)["rng"]) == str(rng_state())


def test_a_run_without_a_checkpoint_has_none(tmp_path):
    assert load_checkpoint(tmp_path) is None


def test_a_new_checkpoint_takes_the_old_one_s_place_and_leaves_nothing_else(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    save_checkpoint(tmp_path, {"step": 2})
    assert load_checkpoint(tmp_path)["step"] == 2
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]


def test_a_payload_that_cannot_be_saved_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    with pytest.raises(Exception, match=r"pickle|local object"):  # Python 3.13 says the second
        save_checkpoint(tmp_path, {"step": 2, "function": lambda: None})
    assert load_checkpoint(tmp_path)["step"] == 1
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]


class Attack:
    """Pickled code: unpickling it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    path = write(tmp_path, {"format": 1, "attack": Attack(tmp_path / "made")})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert str(caught.value) == f"{path} is not a clprompt checkpoint (it holds more than tensors)"
    assert not (tmp_path / "made").exists()


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    save_checkpoint(tmp_path, PAYLOAD)
    path = tmp_path / "checkpoint" / "state.pt"
    whole = path.read_bytes()
    for damaged in (b"", whole[:10], whole[: len(whole) // 2], whole[:-1], b"\0" * len(whole), b"text"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.pt") as caught:
            load_checkpoint(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_with_a_wrong_byte_in_a_tensor_is_refused(tmp_path):
    marked = torch.full((64,), 1.2345)
    save_checkpoint(tmp_path, {"tensor": marked})
    path = tmp_path / "checkpoint" / "state.pt"
    data = bytearray(path.read_bytes())
    data[data.index(marked.numpy().tobytes()) + 17] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("other", [{"format": 2}, {"step": 1}, [1, 2], torch.zeros(3)])
def test_another_format_is_refused(tmp_path, other):
    write(tmp_path, other)
    with pytest.raises(CheckpointError, match="is not a clprompt checkpoint of format 1"):
        load_checkpoint(tmp_path)
