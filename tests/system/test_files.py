import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clprompt.errors import ClpromptError, RunFolderError
from clprompt.system.files import (
    AppendOnlyFile,
    FolderLock,
    atomic_write,
    open_regular,
    read_bytes,
    read_text,
    remove_temporaries,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["größer", "größer".encode(), lambda file: file.write("größer".encode())])
def test_a_file_is_written_from_text_bytes_or_a_function(tmp_path, data):
    atomic_write(tmp_path / "a.txt", "old")
    atomic_write(tmp_path / "a.txt", data)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größer"
    assert names(tmp_path) == ["a.txt"]


def test_the_file_gets_the_permissions_of_any_other_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic_write(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), MemoryError()])
def test_a_writer_that_raises_leaves_the_old_file_whole_and_no_temporary(tmp_path, error):
    def writer(file):
        file.write(b"half of the new con")
        raise error

    atomic_write(tmp_path / "a", "old")
    with pytest.raises(type(error)):
        atomic_write(tmp_path / "a", writer)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupt_before_the_replacement_leaves_the_old_file_alone(tmp_path, monkeypatch, function):
    def interrupted(*_):
        raise KeyboardInterrupt

    atomic_write(tmp_path / "a", "old")
    monkeypatch.setattr(os, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    def writer(file):
        # the device that is always full, through the same system call as a full disk
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    atomic_write(tmp_path / "a", "old")
    with pytest.raises(ClpromptError) as caught:
        atomic_write(tmp_path / "a", writer)
    assert str(caught.value) == f"cannot write {tmp_path / 'a'}: No space left on device"
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(ClpromptError, match=r"cannot write .*: No such file or directory"):
        atomic_write(tmp_path / "nowhere" / "a", "x")


def test_what_a_killed_writer_left_can_be_removed(tmp_path):
    code = """
        import os, signal, sys
        from clprompt.system.files import atomic_write
        atomic_write(sys.argv[1], lambda file: os.kill(os.getpid(), signal.SIGKILL))
    """
    (tmp_path / "deep").mkdir()
    atomic_write(tmp_path / "deep" / "a", "old")
    ended = run_python(code, tmp_path / "deep" / "a")
    assert ended.returncode == -signal.SIGKILL
    assert len(names(tmp_path / "deep")) == 2
    remove_temporaries(tmp_path)
    assert names(tmp_path / "deep") == ["a"]
    assert (tmp_path / "deep" / "a").read_text() == "old"


def test_an_append_only_file_continues_at_its_end_and_reports_its_size(tmp_path):
    first = AppendOnlyFile(tmp_path / "log")
    first.append(b"one\n")
    assert first.pending == 4
    assert first.sync() == 4
    first.close()
    first.close()
    second = AppendOnlyFile(tmp_path / "log")
    second.append(b"two\n")
    second.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_an_abandoned_append_only_file_writes_nothing_more(tmp_path):
    log = AppendOnlyFile(tmp_path / "log")
    log.append(b"kept")
    log.sync()
    log.append(b"lost")
    del log
    assert (tmp_path / "log").read_bytes() == b"kept"


def test_an_append_only_file_on_a_full_disk_is_one_line():
    log = AppendOnlyFile("/dev/full")
    log.append(b"x")
    with pytest.raises(ClpromptError, match="cannot write /dev/full: No space left on device"):
        log.drain()


def run_python(code: str, *arguments: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


TRY_LOCK = """
    import sys
    from clprompt.system.files import FolderLock
    with FolderLock(sys.argv[1]):
        print("taken")
"""


def test_a_second_process_is_refused_until_the_lock_is_given_back(tmp_path):
    with FolderLock(tmp_path):
        refused = run_python(TRY_LOCK, tmp_path)
        assert f"RunFolderError: {tmp_path} is in use by another process" in refused.stderr
        assert refused.returncode != 0
    assert run_python(TRY_LOCK, tmp_path).stdout == "taken\n"


def test_a_second_holder_in_the_same_process_is_refused(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(RunFolderError, match="in use"), FolderLock(tmp_path):
            pass
        with pytest.raises(RunFolderError, match="in use"), FolderLock(tmp_path):
            pass  # the refusal did not give the first lock back
    with FolderLock(tmp_path):
        pass


def test_a_lock_is_given_back_when_the_block_raises(tmp_path):
    with pytest.raises(RuntimeError), FolderLock(tmp_path):
        raise RuntimeError
    with FolderLock(tmp_path):
        pass


def test_a_killed_holder_gives_the_lock_back_though_its_worker_lives_on(tmp_path):
    code = """
        import os, signal, sys, time
        from clprompt.system.files import FolderLock
        lock = FolderLock(sys.argv[1]).__enter__()
        reader, writer = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.write(writer, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(reader, 1)
        open(sys.argv[2], "w").write(str(worker))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    # No pipes: the worker would keep them open, and the call would wait for it.
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(tmp_path / "worker")]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    worker = int((tmp_path / "worker").read_text())
    try:
        assert ended.returncode == -signal.SIGKILL
        os.kill(worker, 0)  # still there
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_worker_does_not_give_back_the_lock_of_its_parent(tmp_path):
    with FolderLock(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=os.getpid)
        worker.start()
        worker.join()
        with pytest.raises(RunFolderError), FolderLock(tmp_path):
            pass


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path):
    with pytest.raises(RunFolderError, match=r"cannot lock .*: No such file"), FolderLock(tmp_path / "no"):
        pass


def test_the_module_needs_the_standard_library_only():
    code = """
        import sys
        import clprompt.system.files
        print([name for name in ("numpy", "torch", "matplotlib", "tensorboard") if name in sys.modules])
    """
    assert run_python(code).stdout == "[]\n"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "a pipe"),
        (os.mkdir, "a folder"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
    ],
)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, make, what):
    make(tmp_path / "a")
    with pytest.raises(OSError, match=f"it is {what}, not a regular file"):
        open_regular(tmp_path / "a")


def test_nothing_is_appended_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ClpromptError, match="cannot open"):
        AppendOnlyFile(tmp_path / "a")


def test_a_file_is_read_whole_or_in_part(tmp_path):
    (tmp_path / "a").write_bytes(b"one\r\ntwo\n")
    assert read_bytes(tmp_path / "a", 4) == b"one\r"
    assert read_text(tmp_path / "a") == "one\ntwo\n"
