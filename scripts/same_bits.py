"""Show that two checkouts of clprompt compute the same bits, whatever their modules are called.

    python scripts/same_bits.py make OUT                        # with a checkout's own interpreter
    python scripts/same_bits.py compare A B [--allow NAME ...]  # A is older; exit code 1 if anything differs
    python scripts/same_bits.py both OLD_PYTHON NEW_PYTHON OUT  # makes OUT/old and OUT/new and compares them

`make` and `both` take `--only PART` (a key of `RUNS`, or fits), which can be repeated.

`make` runs the offline quickstarts by the command line and every registered strategy by `clprompt.fit`, and
keeps what must not depend on how the code is arranged: records, results, tables, drawings, chart points,
tensors. What is measured in seconds or names a folder is left out. It uses public names alone and takes
minutes, on one thread: the number of threads decides in which order sums are formed, and so their last bits.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Keys of a strategy's section by the name that they had before and the one that they have now. A section is
#: taken for an old one where it holds all of the strategy's old keys and none of the new ones alone.
RENAMED: dict[str, dict[str, str]] = {
    # `mask` says which classes compete, in every strategy; MVP's are factors on the logits
    "mvp": {"mask": "logit_mask"},
    # likewise; TCPA had it under another name, and here whether prompts are masked before the softmax
    "tcpa": {"mask": "mask_position", "loss_mask": "mask"},
}
#: Keys that a strategy's section had and lost, with the one value that they could have: refused arguments.
REMOVED: dict[str, dict[str, Any]] = {
    "l2p": {"batchwise_prompt": False},  # a vote over the batch
    "dualprompt": {"batchwise_prompt": False, "top_k": 1},
    "mvp": {"top_k": 1},
}
#: Keys that a strategy's section has got since, with the value that does what was done before.
GAINED: dict[str, dict[str, Any]] = {"mvp": {"mask": "seen"}}
#: Keys that records have got since: read by nobody before, so their presence changes nothing else.
ADDED = {"measure"}  # what a record was measured by, which older readers found out from its keys

#: Keys that results.json and model.json have got since: checksums over the rest and over other files.
CHECKSUMS = {"checksum", "checksums", "tensors_sha256"}

SEEDS = (0, 1)
#: Runs by the command line: what they are called here, and the words behind `clprompt run`.
RUNS = {
    "quickstart": ["quickstart"],
    "quickstart-siblurry": ["quickstart-siblurry"],
    "quickstart-multilabel": ["quickstart-multilabel"],
    "quickstart-tcpa": ["quickstart-tcpa"],
    "quickstart-damvp": ["quickstart-damvp"],
    # what no quickstart does: a memory of images, and everything else that a training section can ask for
    "with-memory": ["quickstart-siblurry", "compare=[]", "memory.size=100"],
    "with-all-settings": [
        *("quickstart", "strategy=vpt_deep", "compare=[]", "export=full", "data.augment=standard"),
        *("training.optimizer=sgd", "training.momentum=0.9", "training.weight_decay=0.001"),
        *("training.schedule=cosine", "training.warmup=0.1", "training.clip_grad=1.0"),
        *("training.mixup=0.2", "training.mixup_probability=0.5", "training.label_smoothing=0.1"),
        *("training.train_epochs=2", "training.workers=1", "precision=bf16"),
    ],
}
FITS = "fits"
LIBRARIES = ("torch", "torchvision", "timm", "avalanche-lib", "numpy", "scikit-learn", "matplotlib", "pillow")
#: One thread in this process and in those that it starts, whichever library asks; no GPU.
SETTINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",
}
#: What `cost` in results.json says of the machine and the hour.
MEASURED = {"seconds", "experience_seconds", "peak_memory_bytes", "device"}
#: Settings that say where a run was made.
PLACES = {"runs_dir"}


# ------------------------------------------------------------------------------------------------ making


def make(out: Path, only: Sequence[str] = ()) -> None:
    """Write one side.

    Args:
        out: a folder that does not exist yet, or is empty.
        only: keys of `RUNS`, or "fits"; everything by default.
    """
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty")
    os.environ.update(SETTINGS)  # before torch is imported
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    write_json(out / "libraries.json", {"python": platform.python_version(), **versions})
    for name, words in RUNS.items():
        if not only or name in only:
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                count = run_by_command(words, Path(folder), out / name)
            print(f"{name}: {count} runs, {time.perf_counter() - started:.0f} s", flush=True)
    if not only or FITS in only:
        started = time.perf_counter()
        count = fit_all(out / FITS)
        print(f"{FITS}: {count} models, {time.perf_counter() - started:.0f} s", flush=True)


def run_by_command(words: Sequence[str], work: Path, out: Path) -> int:
    """`clprompt run` in a process of its own; how many runs it made.

    Args:
        words: configuration and overrides.
        work: an empty folder, where the process stands, so that it imports what is installed.
        out: where to put what is kept of each run.
    """
    seeds = ",".join(map(str, SEEDS))
    command = [sys.executable, "-m", "clprompt", "run", *words]
    command += [f"seed={seeds}", "device=cpu", "name=runs", f"runs_dir={work}"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, env={**os.environ, **SETTINGS})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    taken: set[str] = set()
    for folder in sorted((work / "runs").iterdir()):  # one time in all names: sorted by seed, then strategy
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        plain = f"seed{results['seed']}-{results['strategy']}"
        name, number = plain, 1
        while name in taken:  # a strategy that is compared with itself
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        keep_run(folder, out / name)
    return len(taken)


def keep_run(folder: Path, out: Path) -> None:
    """What a run folder holds beside times and places."""
    import yaml

    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["cost"] = {key: value for key, value in results["cost"].items() if key not in MEASURED}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    write_json(out / "results.json", results)
    write_json(out / "config.json", {key: value for key, value in config.items() if key not in PLACES})
    write_lines(out / "tensorboard.jsonl", chart_points(folder))
    names = ("metrics.jsonl", "model.json", "model.safetensors", "*.csv", "figures/*.png")
    for path in [path for name in names for path in folder.glob(name)]:
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def chart_points(folder: Path) -> list[dict[str, Any]]:
    """Every point of the event files in a folder, sorted, but for speeds and the line of settings."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    points = [
        {
            "tag": value.tag,
            "step": event.step,
            "sha256": hashlib.sha256(value.SerializeToString()).hexdigest(),
        }
        for path in sorted(folder.glob("*tfevents*"))
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if not value.tag.startswith(("speed/", "_hparams_/"))  # times; the name of the folder
    ]
    return sorted(points, key=lambda point: (point["tag"], point["step"], point["sha256"]))


class Listener:
    """Keeps all that the loop tells, but for speeds and drawings."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.tensors: dict[str, Any] = {}

    def record(self, record: Mapping[str, Any], /) -> None:
        """Keep a record."""
        self.records.append(dict(record))

    def speed(self, step: int, images_per_second: float, /) -> None:
        """A time; it is left out."""

    def diagnostics(self, step: int, values: Mapping[str, Any], /) -> None:
        """Keep numbers and arrays; what would draw when called is left out, as drawings are."""
        import torch

        for tag, value in values.items():
            if not callable(value) and not hasattr(value, "savefig"):
                self.tensors[f"diagnostics/{step}/{tag}"] = torch.as_tensor(value)


def fit_all(out: Path) -> int:
    """Every registered strategy by `clprompt.fit` on a small stream of digits; how many models that made.

    With experiences, and, where a strategy can do without, once more on an online stream.
    """
    import torch

    from clprompt import FrozenViT
    from clprompt.data import datasets_for, digits
    from clprompt.registry import scenarios, strategies
    from clprompt.seeding import preserved_rng

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    backbone = FrozenViT("vit_letters")
    train, clean, test = datasets_for(digits(test_fraction=0.8), backbone)
    streams = {
        "split": scenarios.get("split").target(train.targets, seed=0, experiences=3),
        "online": scenarios.get("si_blurry").target(train.targets, seed=0, sessions=3, n=50, m=10),
    }
    count = 0
    for strategy in strategies.names():
        target = strategies.get(strategy).target
        if target.needs_text:
            continue
        forms: dict[str, dict[str, Any]] = {"split": {}}
        if "boundary_free" in inspect.signature(target).parameters:
            forms["online"] = {"boundary_free": True}
        elif target(backbone, seed=0).boundaries == "unused":
            forms["online"] = {}
        for stream, arguments in forms.items():
            with preserved_rng(0):  # the same global state, whatever was trained before
                model = target(backbone, seed=0, **arguments)
                fit_one(
                    model,
                    streams[stream],
                    train,
                    clean,
                    test,
                    stream == "online",
                    out / f"{strategy}-{stream}",
                )
            count += 1
    return count


def fit_one(model: Any, plan: Any, train: Any, clean: Any, test: Any, online: bool, out: Path) -> None:
    """Train a model; write its records, its metrics on all test images, its tensors and its last logits."""
    import torch
    from safetensors.torch import save_file

    from clprompt import evaluate, fit

    try:
        from clprompt import Online, Training
    except ImportError:  # before they were public
        from clprompt.config import Online, Training

    listener = Listener()
    returned = fit(
        model,
        plan,
        train,
        test,
        clean=clean,
        training=Training(train_mb_size=16, train_epochs=2, lr=0.01, log_every=1),
        online=Online(iterations=2, eval_every=100) if online else None,
        listeners=[listener],
    )
    model.eval()
    with torch.no_grad():
        images = torch.stack([test[index][0] for index in range(len(test))])
        logits = torch.cat([model(part) for part in images.split(128)])
    evaluation = evaluate(model, test)
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {"logits": logits, **listener.tensors}
    write_lines(out / "records.jsonl", listener.records)
    write_lines(out / "returned.jsonl", returned)
    write_lines(out / "evaluation.jsonl", [evaluation.record()])
    save_file(
        {name: value.detach().clone().contiguous() for name, value in tensors.items()},
        out / "tensors.safetensors",
    )


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, every digit of its numbers included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ comparing

#: Where two things differ, and both values there; `...` stands for one that is not there.
Difference = tuple[str, Any, Any]


def compare(a: Path, b: Path, allowed: Sequence[str] = ()) -> bool:
    """Print a table of all that two sides hold; whether nothing differs.

    Args:
        a: the older side.
        b: the newer one.
        allowed: names of things that may differ, or patterns such as `quickstart/*/model.json`.
    """
    for folder in (a, b):
        if not folder.is_dir():
            raise SystemExit(f"{folder}: there is no such folder")
    names = sorted(
        {path.relative_to(side).as_posix() for side in (a, b) for path in side.rglob("*") if path.is_file()}
    )
    if not names:
        raise SystemExit(f"{a} and {b} hold nothing")
    counts = dict.fromkeys(("same", "allowed", "DIFFERS"), 0)
    width = max(map(len, names))
    for name in names:
        missing = [str(side) for side in (a, b) if not (side / name).is_file()]
        same, note = (False, f"not in {missing[0]}") if missing else compare_files(a / name, b / name)
        may = any(fnmatch.fnmatch(name, pattern) for pattern in allowed)
        verdict = "same" if same else "allowed" if may else "DIFFERS"
        counts[verdict] += 1
        print(f"{verdict:7}  {name:{width}}  {note}")
    print(f"\n{len(names)} things: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return not counts["DIFFERS"]


def compare_files(a: Path, b: Path) -> tuple[bool, str]:
    """Whether two files of one name say the same, and a note: how much there is, or what differs most."""
    if a.suffix == ".safetensors":
        return compare_tensors(a, b)
    old: Any
    new: Any
    if a.suffix == ".jsonl":
        old, new = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (a, b)
        )
        for before, now in zip(old, new, strict=False):
            for key in ADDED - before.keys():
                now.pop(key, None)
        what = f"{len(old)} records"
    elif a.suffix == ".json":
        old, new = (with_new_keys(json.loads(path.read_text(encoding="utf-8"))) for path in (a, b))
        for key in CHECKSUMS:  # of times and places too
            old.pop(key, None), new.pop(key, None)
        what = f"{sum(1 for _ in leaves(old))} values"
    elif a.suffix == ".csv":
        old, new = (list(csv.reader(path.read_text(encoding="utf-8").splitlines())) for path in (a, b))
        what = f"{len(old)} rows"
        if a.read_bytes() != b.read_bytes() and old == new:
            return False, "other bytes that read the same"
    else:
        same, size = a.read_bytes() == b.read_bytes(), a.stat().st_size
        return same, f"{size} bytes" if same else f"other bytes, {size} and {b.stat().st_size} of them"
    places = list(differences(old, new))
    return not places, f"{what} differ in {worst(places)}" if places else what


def with_new_keys(value: dict[str, Any]) -> dict[str, Any]:
    """A configuration, or what model.json says, with the strategy's keys as they are called now."""
    section = value.get("strategy")
    if not isinstance(section, dict):
        return value
    name = section.get("name", "")
    removed = REMOVED.get(name, {}).items()
    section = {key: entry for key, entry in section.items() if (key, entry) not in removed}
    renamed = RENAMED.get(name, {})
    if renamed.keys() <= section.keys() and not (set(renamed.values()) - renamed.keys()) & section.keys():
        section = {renamed.get(key, key): entry for key, entry in section.items()}
    return {**value, "strategy": {**GAINED.get(name, {}), **section}}


def differences(a: Any, b: Any, path: str = "") -> Iterator[Difference]:
    """Where two nested values differ; numbers are the same when all their digits and their types are."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from differences(a.get(key, ...), b.get(key, ...), f"{path}.{key}" if path else str(key))
    elif isinstance(a, list) and isinstance(b, list):
        for place in range(max(len(a), len(b))):
            old, new = (side[place] if place < len(side) else ... for side in (a, b))
            yield from differences(old, new, f"{path}[{place}]")
    elif type(a) is not type(b) or repr(a) != repr(b):  # repr: nan is nan, -0.0 is not 0.0
        yield path, a, b


def leaves(value: Any) -> Iterator[Any]:
    """The plain values in a nested one."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from leaves(entry)
    else:
        yield value


def worst(places: Sequence[Difference]) -> str:
    """How many places differ, and the one that differs most; what is no pair of numbers comes first."""

    def distance(difference: Difference) -> float:
        _, a, b = difference
        numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (a, b))
        return abs(a - b) if numbers and math.isfinite(a - b) else math.inf

    path, a, b = max(places, key=distance)
    values = ("nothing" if side is ... else shorten(repr(side)) for side in (a, b))
    return f"{len(places)} places, most in {path}: {' and '.join(values)}"


def shorten(text: str) -> str:
    """At most 60 characters of a text."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def compare_tensors(a: Path, b: Path) -> tuple[bool, str]:
    """Whether two files hold the same tensors, bit for bit."""
    import torch
    from safetensors.torch import load_file

    old, new = load_file(a), load_file(b)
    different: list[tuple[float, str]] = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            different.append((math.inf, f"{name} is only in {a if name in old else b}"))
            continue
        x, y = old[name], new[name]
        if x.dtype != y.dtype or x.shape != y.shape:
            kinds = (f"{side.dtype} {list(side.shape)}" for side in (x, y))
            different.append((math.inf, f"{name}: {' and '.join(kinds)}"))
        elif not x.flatten().view(torch.uint8).equal(y.flatten().view(torch.uint8)):
            # inf - inf is nan
            gap = (x.double() - y.double()).abs().nan_to_num(nan=0.0, posinf=math.inf).flatten()
            at = int(gap.argmax())
            place = unravel(at, tuple(x.shape))
            different.append((float(gap[at]), f"{name}{place}: {float(gap[at]):.3g}"))
    if not different:
        numbers = sum(value.numel() for value in old.values())
        return True, f"{len(old)} tensors, {numbers} numbers"
    return False, f"{len(different)} of {len(old)} tensors, most in {max(different)[1]}"


def unravel(place: int, shape: tuple[int, ...]) -> list[int]:
    """The indices of the place-th number of a tensor."""
    indices: list[int] = []
    for size in reversed(shape):
        place, index = divmod(place, size)
        indices.insert(0, index)
    return indices


# ----------------------------------------------------------------------------------------------- command line


def both(old: str, new: str, out: Path, only: Sequence[str] = (), allowed: Sequence[str] = ()) -> bool:
    """Make both sides, each with its interpreter, and compare them; whether nothing differs."""
    for python, side in ((old, "old"), (new, "new")):
        print(f"{side}: {python}", flush=True)
        words = [word for name in only for word in ("--only", name)]
        if subprocess.run([python, __file__, "make", str(out / side), *words]).returncode:
            raise SystemExit(f"{side}: nothing to compare")
    return compare(out / "old", out / "new", allowed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with the given arguments (those of the process when None); the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write one side, with what is installed for this interpreter")
    making.add_argument("out", type=Path, help="a new folder")
    comparing = commands.add_parser("compare", help="compare two sides, or the same part of both")
    comparing.add_argument("a", type=Path, help="the older side")
    comparing.add_argument("b", type=Path, help="the newer side")
    making_both = commands.add_parser("both", help="make two sides and compare them")
    making_both.add_argument("old_python", help="interpreter of the older checkout")
    making_both.add_argument("new_python", help="interpreter of the newer checkout")
    making_both.add_argument("out", type=Path, help="a new folder")
    repeatable: dict[str, Any] = {"action": "append", "default": []}
    for command in (making, making_both):
        text = "make this part alone; repeatable"
        command.add_argument("--only", choices=[*RUNS, FITS], help=text, **repeatable)
    for command in (comparing, making_both):
        text = "a thing (or pattern) that may differ; repeatable"
        command.add_argument("--allow", metavar="NAME", help=text, **repeatable)
    arguments = parser.parse_args(argv)
    if arguments.command == "make":
        make(arguments.out, arguments.only)
        return 0
    if arguments.command == "compare":
        return int(not compare(arguments.a, arguments.b, arguments.allow))
    pythons = arguments.old_python, arguments.new_python
    return int(not both(*pythons, arguments.out, arguments.only, arguments.allow))


if __name__ == "__main__":
    sys.exit(main())
