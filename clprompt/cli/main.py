"""The command `clprompt`. Nothing here imports torch before a command needs it: help comes at once.

A user's mistake is one line on stderr and exit code 2; `CLPROMPT_DEBUG=1` shows the traceback as well. Any
other exception is a bug of clprompt's and keeps its traceback.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clprompt.cli import commands, runs
from clprompt.cli.screen import data, hint, show
from clprompt.errors import ClpromptError, ConfigError, DataError, Interrupted, RunsFailed
from clprompt.system import launched

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

KINDS = ("strategies", "scenarios", "datasets", "plugins", "trackers", "configs", "studies", "backbones")
SECTIONS = ("data", "scenario", "backbone", "strategy", "compare", "training", "online", "memory")

#: Commands that torchrun may start.
_IN_SEVERAL = ("run", "resume")

_imported: list[str] = []  # by --import: a resume line has to repeat them


def entry() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its words, without the program's name; None for those of the process.

    Returns:
        The exit code: 0; 1 where `predict` or `explain` left out images that cannot be read; 2 for a user's
        mistake; 130 or 143 for an interrupted run that can be resumed.
    """
    _imported.clear()
    if sys.platform == "win32":
        return _mistake(ConfigError(), "clprompt runs on Linux; on Windows inside WSL")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            group.main(args=None if argv is None else list(argv), prog_name="clprompt", standalone_mode=False)
    except Interrupted as stop:
        _show(stop.finished)
        words = [word for module in _imported for word in ("--import", module)]
        again = stop.again or ["clprompt", "resume", *map(str, stop.folders)]
        line = launched.command() + shlex.join([*again[:2], *words, *again[2:]])
        resumable = stop.again or stop.folders
        if launched.rank() == 0:
            hint(f"interrupted; continue with: {line}" if resumable else "interrupted")
        return 128 + stop.signal
    except click.Abort:
        print("interrupted", file=sys.stderr)
        return 130
    except click.ClickException as error:
        return _mistake(error, error.format_message())
    except ClpromptError as error:
        _show(getattr(error, "finished", []))
        return _mistake(error, str(error))
    except OSError as error:
        about = f": {error.filename}" if error.filename is not None else ""
        return _mistake(error, f"{error.strerror or error}{about}")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):  # its operators, compiled against another torch
            raise
        from importlib.metadata import version

        pair = " and ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
        return _mistake(error, f"{pair} do not fit together ({error}); install both anew, from one index")
    except SystemExit as stop:  # click ends completion and broken pipes this way
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _show(results: list[Any]) -> None:
    """Print the block of what is finished, if anything is."""
    if results:
        from clprompt.cli.results import results as block

        show(block(results))


_show_warning = warnings.showwarning


def _note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """What a user should read about the data is one line; other warnings look as Python shows them."""
    if launched.rank():  # the first process says the same
        return
    if category.__name__ == "DataWarning":  # by name: the class's module loads torch
        hint(f"clprompt: note: {' '.join(str(message).split())}")
    else:
        _show_warning(message, category, *where, **more)


def _mistake(error: Exception, text: str) -> int:
    if os.environ.get("CLPROMPT_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if launched.is_first_to_tell():
        hint(f"clprompt: error: {' '.join(text.split()) or type(error).__name__}")
    launched.stay_for_others()
    return 2


# ------------------------------------------------------------------------------------------ completion


def _complete_config(
    context: click.Context, parameter: click.Parameter, word: str, kind: str = "configuration"
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from clprompt.system import overlay

    items = [CompletionItem(name, help=text) for name, text in overlay.names(kind) if name.startswith(word)]
    return items or [CompletionItem(word, type="file")]


def _complete_override(context: click.Context, parameter: click.Parameter, word: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from clprompt import schema
    from clprompt.experiment import config

    keys = [f"{key}=" for key in (*(key for key in config.PLAIN_KEYS if key != "label"), *SECTIONS)]
    for section, settings in config.SETTINGS.items():
        keys += [f"{section}.{key}=" for key in schema.parameters(settings)[0]]
    return [CompletionItem(key) for key in keys if key.startswith(word)]


def _complete_kind(context: click.Context, parameter: click.Parameter, word: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(kind) for kind in KINDS if kind.startswith(word)]


# -------------------------------------------------------------------------------------------- commands


def _import(context: click.Context, parameter: click.Parameter, modules: tuple[str, ...]) -> None:
    if context.resilient_parsing:
        return
    for module in modules:
        if module not in _imported:
            _import_one(module)
            _imported.append(module)


def _import_one(module: str) -> None:
    from clprompt.registry import load_builtin

    load_builtin()  # ours first, so that a name taken twice is told to whoever took it second
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module).stem, module)
            assert spec is not None  # the suffix is known
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = loaded
            spec.loader.exec_module(loaded)
        else:
            importlib.import_module(module)
    except ClpromptError:
        raise
    except Exception as error:
        raise ConfigError(f"--import {module}: {type(error).__name__}: {error}") from error


_import_option: Callable[[Any], Any] = click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    expose_value=False,
    callback=_import,
    help="Import a module (or a .py file) first, so that what it registers counts. Repeatable.",
)
_checkpoint_option = click.option(
    "--checkpoint",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The backbone's weights, where they are not any more where the run had them.",
)
_config_argument = click.argument("config", metavar="CONFIG", shell_complete=_complete_config)
_overrides_argument = click.argument(
    "overrides", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=_complete_override
)


@click.group(
    cls=commands.Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        'Shell completion: eval "$(_CLPROMPT_COMPLETE=bash_source clprompt)" (or zsh_source, fish_source).'
    ),
)
@click.version_option(package_name="clprompt", message="%(prog)s %(version)s")
@_import_option
@click.pass_context
def group(context: click.Context) -> None:
    """Prompt-based, rehearsal-free continual learning over frozen vision transformers."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    elif launched.processes() > 1 and context.invoked_subcommand not in _IN_SEVERAL:
        raise ConfigError(
            f"clprompt {context.invoked_subcommand} runs in one process, not in several (torchrun); "
            f"{' and '.join(_IN_SEVERAL)} do"
        )


@group.command()
@_config_argument
@_overrides_argument
@_import_option
def run(config: str, overrides: tuple[str, ...]) -> None:
    """Run an experiment.

    CONFIG is the name of a packaged configuration (`clprompt list configs`) or a path to a .yaml file.
    Overrides change single values (training.lr=0.01, seed=0,1,2), or a whole section by name
    (strategy=l2p, data=digits).
    """
    from clprompt.experiment import config as configs

    with _together():
        resolved = configs.load(config, overrides)
        from clprompt.experiment import run as experiment
        from clprompt.system import progress  # after the cheap mistakes are told

        with progress.create() as bar:
            results = experiment.run(resolved, progress=bar)
    _show(results)


def _together() -> AbstractContextManager[Any]:
    """Meet the other processes that torchrun started, if any, so that a mistake is told once."""
    if launched.processes() == 1:
        return nullcontext()
    from clprompt.training.processes import together

    return together()


@group.command(short_help="Continue interrupted runs from their checkpoints.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@_checkpoint_option
@_import_option
def resume(runs: tuple[str, ...], checkpoint: Path | None) -> None:
    """Continue interrupted runs from their checkpoints, to the same results.

    RUN is the folder of a run, as `clprompt run` printed it.
    """
    folders = list(dict.fromkeys(Path(folder) for folder in runs))
    from clprompt.experiment.manage import check_run

    for folder in folders:
        check_run(folder)
    from clprompt.experiment import run as experiment
    from clprompt.system import progress

    results: list[Any] = []
    failures: dict[Path, ClpromptError] = {}
    with _together(), progress.create() as bar:
        for position, folder in enumerate(folders):
            if len(folders) > 1:
                bar.turn(position + 1, len(folders))
            try:
                result = experiment.resume(folder, checkpoint=checkpoint, progress=bar)
                results += [] if result is None else [result]
            except Interrupted as stop:
                left = [*failures, *stop.folders, *folders[position + 1 :]]
                raise Interrupted(stop.signal, dict.fromkeys(left), results) from None
            except ClpromptError as error:
                if len(folders) == 1 or launched.processes() > 1:
                    raise
                failures[folder] = error
    if failures:
        raise RunsFailed(failures, results)
    _show(results)


@group.command(short_help="Run a grid of strategies, scenarios and seeds.")
@click.argument("study", metavar="STUDY", shell_complete=functools.partial(_complete_config, kind="study"))
@_overrides_argument
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time, at most one a core.  [default: 1]")
@click.option("--only", metavar="LABEL", multiple=True, help="Only this strategy. Repeatable.")
@click.option("--scenario", metavar="LABEL", multiple=True, help="Only this scenario. Repeatable.")
@click.option("--seed", metavar="K", type=int, multiple=True, help="Only this seed. Repeatable.")
@click.option(
    "--again",
    is_flag=True,
    help="Run again, from the start, what was begun with another configuration: of those runs only notes and "
    "tags are kept, results and checkpoints go.",
)
@click.option("--dry-run", is_flag=True, help="Print one command for each run that is left, and run nothing.")
@click.option("--launcher", default="local", show_default=True, help="local, or ray (extra clprompt[ray]).")
@click.option(
    "--gpus-per-run", metavar="SHARE", type=float, help="With ray: what a run gets, 0 to 1.  [default: 1]"
)
@_import_option
def study(study: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Run a grid of strategies, scenarios and seeds, or several configurations as they are; each run has a
    process and a folder of its own.

    STUDY is the name of a packaged study (`clprompt list studies`) or a path to a .yaml file;
    overrides are those of `clprompt run`. What is finished is skipped, what was interrupted goes on;
    the report comes at the end. Where a run's folder holds another configuration than this call's (tuned=FILE
    forgotten, say), nothing is run: one line says what is different.
    """
    from clprompt.cli import study as study_command

    study_command.run(study, overrides, imports=_imported, **options)


@group.command("meta-init", short_help="Learn what a strategy's prompts start from, on source data.")
@click.argument(
    "config", metavar="CONFIG", shell_complete=functools.partial(_complete_config, kind="meta-init")
)
@click.argument("overrides", metavar="out=FILE [KEY=VALUE]...", nargs=-1)
@_import_option
def meta_init(config: str, overrides: tuple[str, ...]) -> None:
    """Learn prompts on source data sets and write them to FILE; strategy.init_file=FILE starts from it.

    CONFIG is the name of a packaged configuration (letters, vpt-letters) or a path to a .yaml file with a
    backbone, a strategy and a list of sources. Overrides change single values (training.lr=0.01, seed=1).
    An interrupted meta-init goes on when the same command is given again.
    """
    paths = [word.removeprefix("out=") for word in overrides if word.startswith("out=")]
    if not paths or not paths[-1]:
        raise ConfigError("meta-init needs out=FILE, where the prompts shall be written")
    from clprompt.experiment.meta_init import meta_init as learn
    from clprompt.system import progress

    words = [word for word in overrides if not word.startswith("out=")]
    command = ["clprompt", "meta-init", config, *overrides]
    with progress.create() as bar:
        written = learn(config, words, Path(paths[-1]), progress=bar, command=command)
    for path in written:
        click.echo(path)


@group.command(short_help="Compare finished runs: tables, drawings, one HTML file.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out", metavar="DIR", type=click.Path(), help="Where to write; also out=DIR.  [default: report]"
)
@click.option("--against", metavar="LABEL", default="", help="Add a table of differences to this row.")
@click.option("--metrics", metavar="NAME,...", default="", help="Show these metrics of results.json.")
@click.option(
    "--latex", metavar="FILE", type=click.Path(), help="Write the tables as LaTeX, the best of a column bold."
)
@click.option("--underline-second", is_flag=True, help="In LaTeX, underline the second best of a column.")
@click.option("--csv", metavar="FILE", type=click.Path(), help="Write the numbers, seed by seed, as CSV.")
@click.option(
    "--figures",
    type=click.Choice(["png", "pdf", "svg"]),
    default="png",
    show_default=True,
    help="Draw in this form as well.",
)
def report(
    runs: tuple[str, ...],
    out: str | None,
    against: str,
    metrics: str,
    latex: str | None,
    underline_second: bool,
    csv: str | None,
    figures: str,
) -> None:
    """Compare finished runs: means and standard errors over seeds, drawings, one self-contained HTML file.

    RUN is a run folder, or a folder with run folders somewhere below it.
    Unfinished runs are named and left out.
    """
    if underline_second and latex is None:
        raise click.UsageError("--underline-second needs --latex FILE.")
    words = [run for run in runs if not run.startswith("out=")]
    named = [run.removeprefix("out=") for run in runs if run.startswith("out=")]
    if not words:
        raise click.UsageError("Missing argument 'RUN...'.")
    from clprompt.reporting import paper
    from clprompt.reporting import report as reports
    from clprompt.system.files import atomic_write

    chosen = [word.strip() for word in metrics.split(",") if word.strip()]
    comparison = reports.collect(words, against, chosen)
    written = comparison.write(out or (named[-1] if named else "") or "report", figures)
    if latex is not None:
        atomic_write(latex, paper.latex(comparison, underline_second=underline_second))
        written.append(Path(latex))
    if csv is not None:
        atomic_write(csv, paper.csv(comparison))
        written.append(Path(csv))
    show(comparison.text())
    show("\n" + "\n".join(map(str, written)))


_run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
_images_argument = click.argument("images", metavar="IMAGES...", nargs=-1, required=True, type=click.Path())
_device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
_bad_image_option = click.option(
    "--on-bad-image",
    type=click.Choice(["skip", "error"]),
    default="skip",
    show_default=True,
    help="An image that cannot be read: name it, go on, and end with exit code 1; or stop before anything.",
)
_max_pixels_option = click.option(
    "--max-pixels",
    metavar="N",
    type=click.IntRange(min=1),
    help="An image with more pixels cannot be read.  [default: 89478485]",
)


class _BadImages(list[str]):
    """What cannot be read; told when the rest is done."""

    def finish(self, count: int) -> None:
        """Name each, and end the command with exit code 1.

        Args:
            count: how many images were read.

        Raises:
            DataError: none was.
        """
        if not self:
            return
        if not count:
            more = f" (and {len(self) - 1} more)" if len(self) > 1 else ""
            raise DataError(f"{self[0]}{more}; no image is left")
        for text in self:
            hint(f"clprompt: note: {' '.join(text.split())}")
        verb = "is" if len(self) == 1 else "are"
        total = count + len(self)
        hint(f"clprompt: error: {len(self)} of {total} cannot be read and {verb} left out")
        sys.exit(1)


@group.command(short_help="Classify images with a trained model; CSV.")
@_run_argument
@_images_argument
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time."
)
@click.option(
    "--names",
    metavar="NAME,...",
    help="What images may show, in place of the run's classes; for strategies that read text.",
)
@click.option(
    "--out", metavar="FILE", type=click.Path(), help="Where to write the CSV; standard output else."
)
@_bad_image_option
@_max_pixels_option
@_checkpoint_option
@_device_option
@_import_option
def predict(
    run: Path,
    images: tuple[str, ...],
    top_k: int,
    batch_size: int,
    names: str | None,
    out: str | None,
    on_bad_image: str,
    max_pixels: int | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Classify images with the model of a finished run, as CSV: path, rank, class, probability.

    RUN is the folder of the run, or hf://USER/NAME[@REVISION], which `clprompt push` uploaded; IMAGES are
    files, folders and patterns ("photos/**/*.jpg").

    A probability is the softmax (of label sets the sigmoid) of what answers: trained logits, or with
    "statistics" the scores of a head on class statistics, a posterior where that is LDA. Their scales differ,
    and none is calibrated; a note on standard error says which it is.
    """
    from clprompt.data.images import MAX_PIXELS
    from clprompt.experiment import hub, inference

    bad = _BadImages()
    report = bad.append if on_bad_image == "skip" else None
    run = hub.local(run)
    facts, paths = inference.read_facts(run), inference.find_images(images, report)
    model = inference.load(run, device=device, checkpoint=checkpoint)
    multi_label = bool(facts.get("multi_label"))
    predictions = list(
        inference.predict(
            model,
            paths,
            top_k=top_k,
            batch_size=batch_size,
            multi_label=multi_label,
            names=None if names is None else names.split(","),
            max_pixels=max_pixels or MAX_PIXELS,
            on_bad_image=report,
        )
    )
    count = len({prediction.path for prediction in predictions})
    if not count:
        bad.finish(count)
    text = inference.to_csv(predictions)
    if out is None:
        data(text)
    else:
        from clprompt.system.files import atomic_write

        atomic_write(out, text.encode(errors="surrogateescape"))  # names of files are bytes
    meaning = inference.probability_is(model, multi_label=multi_label, by_name=names is not None)
    hint(f"clprompt: note: probability is {meaning}; other heads have other scales")
    bad.finish(count)


@group.command(short_help="Draw how a trained model sees images, where its method can.")
@_run_argument
@_images_argument
@click.option(
    "--out", metavar="DIR", type=click.Path(), default="explain", show_default=True, help="Where to draw."
)
@click.option(
    "--classes",
    metavar="NAME,...",
    help="Classes to look at beside the predicted one; for strategies that compare classes.",
)
@_bad_image_option
@_max_pixels_option
@_checkpoint_option
@_device_option
@_import_option
def explain(
    run: Path,
    images: tuple[str, ...],
    out: str,
    classes: str | None,
    on_bad_image: str,
    max_pixels: int | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Draw how the model of a finished run sees images, where its method can; one PNG per drawing.

    RUN is the folder of the run, or hf://USER/NAME[@REVISION]; IMAGES are files, folders and patterns.
    """
    from clprompt.data.images import MAX_PIXELS
    from clprompt.experiment import hub, inference

    bad = _BadImages()
    report = bad.append if on_bad_image == "skip" else None
    run = hub.local(run)
    inference.read_facts(run)
    paths = inference.find_images(images, report)
    folders = len(bad)
    plots = inference.explain(
        run,
        paths,
        classes=None if classes is None else classes.split(","),
        device=device,
        checkpoint=checkpoint,
        max_pixels=max_pixels or MAX_PIXELS,
        on_bad_image=report,
    )
    for path in inference.draw(plots, Path(out)) if plots else ():
        show(path)
    bad.finish(len(paths) - (len(bad) - folders) if plots else 0)


@group.command(short_help="Write a trained model as ONNX, as an exported program or with its backbone.")
@_run_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "torch-export", "safetensors"]),
    required=True,
    help="onnx for ONNX Runtime, torch-export for torch.export.load, safetensors for clprompt.load.",
)
@click.option(
    "--out",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="A file; for safetensors a folder.  [default: in RUN]",
)
@_import_option
def export(run: Path, form: Any, out: Path | None) -> None:
    """Write the model of a finished run, backbone included, in a form that other programs serve.

    RUN is the folder of the run. onnx and torch-export take images in batches of any size; names of the
    classes and how images are prepared stand in their metadata.
    """
    from clprompt.experiment import export as exports

    written = exports.export(run, form, out)
    show(f"written: {written.path}")
    if written.difference is not None:
        show(f"largest difference from the model's logits, on noise: {written.difference:.1e} of the largest")


@group.command(short_help="Upload a trained model with a card to the Hugging Face Hub.")
@_run_argument
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--revision", metavar="BRANCH", help="The branch to write.  [default: the main one]")
@click.option(
    "--create/--no-create",
    default=True,
    show_default=True,
    help="Make the repository, or the branch, where it is not there.",
)
@_import_option
def push(run: Path, repo: str, private: bool, revision: str | None, create: bool) -> None:
    """Upload the model of a finished run, backbone included, to a repository of the Hugging Face Hub.

    RUN is the folder of the run. Uploaded are model.safetensors, model.json and a card (README.md) made of
    the run; they are kept in RUN/exported. `clprompt predict hf://USER/NAME` and `clprompt.load` fetch them.
    Who you are there is known from `hf auth login` or HF_TOKEN.
    """
    from clprompt.experiment import push as pushing

    uploaded = pushing.push(run, repo, private=private, revision=revision, create=create)
    show(f"uploaded: {uploaded.url}")
    if uploaded.kept_card:
        show(f"its README.md stays as it is; the card of this run is {run / 'exported' / 'README.md'}")


@group.command(short_help="Draw what arrives when in a stream: a table and a PNG.")
@click.argument("stream", metavar="CONFIG|STUDY|SCENARIO", shell_complete=_complete_config)
@_overrides_argument
@_import_option
def stream(stream: str, overrides: tuple[str, ...]) -> None:
    """Draw what arrives when in a stream; no model is loaded.

    The stream is that of a configuration, those of a study, or a scenario by name (`clprompt list scenarios`)
    with data=NAME or labels=FILE.npy (class ids). Overrides are those of a run (scenario.n=30, seed=3);
    out=FILE.png says where to draw.
    """
    from clprompt.cli.stream import read
    from clprompt.reporting import plots
    from clprompt.system import files

    for number, (drawn, out) in enumerate(read(stream, overrides)):
        show(("\n" if number else "") + drawn.table())
        files.atomic_write(out, plots.png(drawn.figure()))
        show(f"\ndrawn: {out}")


@group.command(
    "list", short_help="List what there is, or the arguments of a strategy, a scenario, a data set, ..."
)
@click.argument("kind", metavar="[KIND|NAME]", required=False, shell_complete=_complete_kind)
@_import_option
def list_(kind: str | None) -> None:
    """List strategies, scenarios, datasets, plugins, trackers (sinks), configs, studies or backbones; all
    without an argument.

    NAME is that of a strategy, scenario, data set, plug-in or tracker, or of a section of settings (training,
    online, memory): its arguments are listed, each with its type, default and meaning.
    """
    from clprompt.cli import listing

    kind = "trackers" if kind == "sinks" else kind
    if kind is not None and kind not in KINDS:
        for line in listing.about(kind, KINDS):
            show(line)
        return
    for position, listed in enumerate([kind] if kind else KINDS):
        if kind is None:
            show(("\n" if position else "") + f"{listed}:")
        for line in listing.listing(listed, short=kind is None):
            show(line)


@group.command("config", short_help="Print a configuration, resolved; nothing is run.")
@_config_argument
@_overrides_argument
@click.option(
    "--against",
    type=click.Choice(["released"]),
    help="Print the configuration beside the values of the code that was released for its paper instead.",
)
@_import_option
def config_(config: str, overrides: tuple[str, ...], against: str | None) -> None:
    """Print a configuration with every default and override written out; nothing is run."""
    from clprompt.experiment import config as configs

    if against is None:
        text = configs.to_yaml(configs.load(config, overrides))
        base = configs.base_of(config, overrides)
        data(text if base is None else f"# base: {base}\n{text}")
        return
    from clprompt.cli.listing import beside_released

    for line in beside_released(config, overrides):
        show(line)


group.add_command(runs.group)
