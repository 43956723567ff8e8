"""The model of a finished run, with a card that says what it is, uploaded to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clprompt import plain_yaml, registry
from clprompt.experiment import export, hub, inference, paths
from clprompt.experiment.manage import check_run
from clprompt.metrics.measure import TITLES, measure_behind
from clprompt.metrics.text import percent
from clprompt.reporting.finished import read_results
from clprompt.system.files import atomic_write
from clprompt.system.overlay import read_written

#: Sections of a configuration that say how a model was trained.
_SECTIONS = ("data", "scenario", "backbone", "strategy", "training", "online", "memory")
#: Classes that a card names, the first.
_NAMED = 50


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create: bool = True,
) -> hub.Uploaded:
    """Export a run's model, write its card beside it, and upload both.

    Args:
        run: the run's folder; the model is written into its ``exported``, as :func:`export.export` does.
        repo: user/name.
        private: see :func:`hub.upload`.
        revision: see :func:`hub.upload`.
        create: see :func:`hub.upload`.

    Raises:
        ConfigError: no name of a repository.
        RunFolderError: not a run, or it is not finished.
        ExportError: the model cannot be written with its backbone.
        HubError: the repository cannot be written.
        ClpromptError: the run cannot be read.
    """
    run, repo = Path(run), hub.checked(repo.removeprefix("hf://"))
    check_run(run)
    text = card(run, repo, revision)
    folder = export.export(run, "safetensors").path
    atomic_write(folder / hub.CARD, text)
    return hub.upload(
        folder, repo, message=f"Upload {run.name}", private=private, revision=revision, create=create
    )


def card(run: Path, repo: str, revision: str | None = None) -> str:
    """What a repository says of its model, Markdown behind a YAML header; its licence is left to the author.

    Args:
        run: the folder of a finished run.
        repo: where the model will be, user/name.
        revision: the branch, if not the main one.

    Raises:
        ClpromptError: the run cannot be read.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    facts, config = inference.read_facts(run), read_written(run / "config.yaml")
    results = read_results(run)
    name, names = facts["strategy"]["name"], facts["class_names"]
    paper = registry.strategies.get(name).info.get("paper")
    address = hub.address(repo, revision)
    classes = ", ".join(" ".join(one.split()) for one in names[:_NAMED])
    classes += f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    figures = measure_behind([results]).shown([results])
    trained = {key: _shown(config[key]) for key in _SECTIONS if config.get(key) is not None}
    measured = {key: value for key in figures if (value := results.get(key)) is not None}
    header = ModelCardData(
        model_name=repo.partition("/")[2],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=config["data"]["name"],
                dataset_name=f"{config['data']['name']}, {config['scenario']['name']}",
                metric_type=key,
                metric_name=f"{TITLES[key]} (%)",
                metric_value=round(100 * value, 2),
            )
            for key, value in measured.items()
        ],
        library_name="clprompt",
        pipeline_tag="image-classification",
        tags=["clprompt", "continual-learning", "class-incremental-learning", "prompt-tuning", name],
    )
    lines: list[Any] = [
        f"# {repo.partition('/')[2]}",
        f"A classifier of images that learnt its classes one experience after another: {name} over the "
        f"frozen backbone {facts['backbone']['name']}, trained with clprompt.",
        "\n".join(
            (
                f"- **Strategy**: {name}" + (f" ({paper})" if paper else ""),
                f"- **Data set**: {config['data']['name']}",
                f"- **Stream**: {config['scenario']['name']}",
                f"- **Backbone**: {facts['backbone']['name']}, its weights are in `model.safetensors`",
                f"- **Seed**: {facts['seed']}",
                f"- **Classes** ({len(names)}): {classes}",
            )
        ),
        "## Figures",
        "On the test images of the run, in percent:",
        "\n".join(
            (
                f"| {' | '.join(TITLES[key] for key in figures)} |",
                f"|{' ---: |' * len(figures)}",
                f"| {' | '.join(percent(results.get(key)) for key in figures)} |",
            )
        ),
        "## How to load it",
        f'```python\nimport clprompt\nmodel = clprompt.load("{address}")\n```',
        '`model.transform("photo.jpg")` makes a tensor of an image, `model.class_names` names the columns of '
        "the logits. "
        "From the command line:",
        f"```bash\nclprompt predict {address} images/\n```",
        "## How it was trained",
        f"```yaml\n{plain_yaml.write(trained)}```",
        "## Licence",
        "To be filled in by the author: `license` in the header of this file, and a sentence here. The "
        "licences of the backbone's weights and of the images may bind, too.",
    ]
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"))


def _shown(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in paths.without_folders(section).items() if value is not None}
