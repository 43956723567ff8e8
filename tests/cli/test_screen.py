"""What is printed: harmless on a terminal, and byte by byte what a file would hold in a pipe."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest
from nasty_text import NASTY

from clprompt.cli import screen
from clprompt.cli.main import main
from clprompt.experiment import inference
from clprompt.experiment.inference import Prediction
from clprompt.system.files import atomic_write

NAMES = [text for text in NASTY if "\r" not in text]


def as_csv() -> str:
    return inference.to_csv([Prediction(Path("a\udcff.png"), 1, name, 0.5) for name in NAMES])


def test_a_pipe_gets_the_bytes_of_the_file(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    atomic_write(tmp_path / "p.csv", as_csv().encode(errors="surrogateescape"))
    screen.data(as_csv())
    assert capfdbinary.readouterr().out == (tmp_path / "p.csv").read_bytes()


def test_a_terminal_gets_nothing_that_it_would_obey(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen.data(as_csv())
    screen.show("\n".join(NAMES))
    screen.hint("\n".join(NAMES))
    out, err = capsys.readouterr()
    assert "\\x1b[31m" in out
    assert "\\x1b[31m" in err
    assert not {"\x1b", "\x7f", "\x85", "\x00"} & {*out, *err}


def test_data_reach_a_stream_that_takes_text_alone() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        screen.data("a.png,1,cat\n")
    assert out.getvalue() == "a.png,1,cat\n"


def test_what_is_for_eyes_is_the_same_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.show("\x1b[31mred")
    in_pipe = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen.show("\x1b[31mred")
    assert in_pipe == capsys.readouterr().out == "\\x1b[31mred\n"


def test_a_stream_without_the_sign_gets_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, expected in (("ascii", b"81.3 +- 0.4 \\u6570\n"), ("utf-8", "81.3 ± 0.4 数\n".encode())):
        for name, say in (("stdout", screen.show), ("stderr", screen.hint)):
            stream = io.TextIOWrapper(io.BytesIO(), encoding)
            monkeypatch.setattr(sys, name, stream)
            say("81.3 ± 0.4 数")
            stream.flush()
            assert stream.buffer.getvalue() == expected


def test_a_configuration_is_printed_so_that_it_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "quickstart", 'label="\\x1b[31m\\u202e ${"', "runs_dir='/data/runs #2'"]) == 2
    assert "label" in capsys.readouterr().err
    assert main(["config", "quickstart", 'label="\\x1b[31m\\u202e \\\\${x}"', "runs_dir=/data/runs #2"]) == 0
    out = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(out, encoding="utf-8")
    assert main(["config", str(tmp_path / "again.yaml")]) == 0
    assert capsys.readouterr().out == out
    assert "runs_dir: '/data/runs #2'" in out


def test_a_mistake_shows_the_escapes_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quick\x1b]0;title\x07start"]) == 2
    err = capsys.readouterr().err
    assert "\\x1b]0;title\\x07" in err
    assert "\x1b" not in err
