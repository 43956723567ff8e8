"""`clprompt meta-init`: the meta-step's invariants, resuming to the same bits, the file's use, mistakes."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from drawing import same_picture
from torch import Tensor, nn

from clprompt.backbones.vit import FrozenViT
from clprompt.cli.main import main
from clprompt.errors import CheckpointError, ConfigError, DataWarning
from clprompt.prompting.build import construct
from clprompt.seeding import generator
from clprompt.strategies.damvp import DAMVPModel
from clprompt.strategies.damvp.frames import frame_places, frame_size, load_frame, save_frame
from clprompt.strategies.damvp.meta import Batch, Source, adapt, inner_rate, meta_update
from clprompt.strategies.damvp.meta_init import Learner, moving_average, run
from clprompt.strategies.damvp.meta_sources import load
from clprompt.system import progress
from clprompt.system.progress import Progress

TINY = [
    "backbone={name: vit_tiny_patch16_224, embed_dim: 16, depth: 2, num_heads: 2, img_size: 32}",
    "sources=[{name: synthetic, classes: 0-5, tasks: 2}, {name: synthetic, seed: 1, train_per_class: 9}]",
    "epochs=2",
    "train_mb_size=16",
    "pad=4",
    "max_clusters=3",
]


def settings(*overrides: str):
    return load("letters", [*TINY, *overrides])


def learner(*overrides: str) -> Learner:
    made = Learner(settings(*overrides))
    made.look()
    return made


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame from an undisturbed meta-init."""
    file = tmp_path_factory.mktemp("meta") / "frame.safetensors"
    run(settings(), file, progress=Progress(), command=[])
    return file


# ------------------------------------------------------------------------------------------- a meta-step


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "draw"))


@pytest.fixture
def batch() -> Batch:
    """Eight images of which the first of three prototypes gets none."""
    backbone = FrozenViT("vit_tiny_patch16_224", embed_dim=16, depth=2, num_heads=2, img_size=32)
    images = draw(8, 3, 32, 32)
    features = backbone.features(images)
    prototypes = torch.stack([features[0] + 100, features[1], features[5]])
    source = Source("toy", prototypes, nn.Linear(16, 4))
    return Batch(backbone, frame_places(3, 32, 4), source, images, torch.arange(8) % 4)


def test_a_step_size_of_zero_leaves_the_frame_alone():
    frame, fast = draw(20), draw(1, 20, seed=1)
    assert torch.equal(meta_update(frame, [fast], [1], step_size=0.0), frame)


def test_one_copy_at_full_step_is_the_new_frame():
    frame, fast = draw(20), draw(1, 20, seed=1)
    torch.testing.assert_close(meta_update(frame, [fast], [1], step_size=1.0), fast[0])


def test_clusters_that_do_not_occur_shorten_the_step_unless_they_are_not_counted():
    frame, fast = draw(20), draw(2, 20, seed=1)
    whole = meta_update(frame, [fast], [2], step_size=0.5) - frame
    torch.testing.assert_close(meta_update(frame, [fast], [5], step_size=0.5) - frame, whole * 2 / 5)
    torch.testing.assert_close(
        meta_update(frame, [fast], [5], step_size=0.5, count_idle=False) - frame, whole
    )


def test_the_inner_rate_falls_to_exactly_zero_where_copies_stay_the_frame(batch):
    assert inner_rate(0.5, 8, 8) == 0
    rates = [inner_rate(0.5, step, 8) for step in range(1, 9)]
    assert rates == sorted(rates, reverse=True)
    frame = draw(frame_size(3, 32, 4))
    *_, (_, fast) = adapt(batch, frame, steps=2, lr=0.0)
    assert torch.equal(fast, frame.expand(len(fast), -1))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_only_clusters_that_occur_get_copies_and_the_loss_falls(batch, optimizer):
    frame = torch.zeros(frame_size(3, 32, 4))
    told = list(adapt(batch, frame, steps=6, lr=0.05, optimizer=optimizer, weight_decay=0.1))
    assert batch.used.tolist() == [1, 2]
    assert told[-1][1].shape == (2, len(frame))
    assert told[-1][0] < told[0][0]
    assert not torch.equal(*told[-1][1])


def test_the_backbone_stays_bit_identical_and_gets_no_gradient():
    made = learner("steps=2")
    before = made.backbone.fingerprint()
    for together in made.batches():
        made.meta_step(together)
    assert made.step == 2
    assert made.backbone.fingerprint() == before
    assert all(p.grad is None and not p.requires_grad for p in made.backbone.parameters())


def test_sources_are_clustered_by_the_threshold_of_the_first():
    made = learner("threshold_ratio=0.8", "min_cluster_size=1")
    assert [s.name for s in made.sources] == ["synthetic 1/2", "synthetic 2/2", "synthetic"]
    assert [m.class_names for m in made.material][:2] == [
        ["blob 0", "blob 1", "blob 2"],
        ["blob 3", "blob 4", "blob 5"],
    ]
    assert all(1 <= len(s.prototypes) <= 3 for s in made.sources)


def test_the_shortest_source_ends_an_epoch():
    made = learner("threshold_ratio=0.8", "min_cluster_size=1")
    assert made.per_epoch == 4  # 60 images against 90, 16 at a time
    labels = [labels for together in made.batches() for labels in [together[0][1]] if advance(made)]
    assert sorted(torch.cat(labels[:4]).tolist()) == [0] * 20 + [1] * 20 + [2] * 20
    assert len(labels) == made.steps == 8


def advance(made: Learner) -> bool:
    made.step += 1
    return True


def test_the_lowest_moving_average_may_be_kept_in_place_of_the_last_frame(tmp_path):
    assert moving_average([4.0, 2.0]) == [4.0, 3.0]
    made = learner("steps=6", "inner_lr=50.0")
    frames = []
    for together in made.batches():
        made.meta_step(together)
        frames.append(made.frame)
    averages = moving_average([loss[-1] for loss in made.losses])
    assert torch.equal(made.best, frames[averages.index(min(averages))])


@pytest.mark.parametrize("head", ["linear", "active"])
def test_a_source_without_clusters_has_one_prototype_and_either_head_learns(head):
    made = learner("cluster=false", "steps=3", f"head={head}", "init_std=1.0", "inner_lr=0.1")
    assert [len(source.prototypes) for source in made.sources] == [1, 1, 1]
    start = made.frame
    for together in made.batches():
        made.meta_step(together)
    assert not torch.equal(made.frame, start)
    assert (made.sources[0].head is None) == (head == "active")


# ------------------------------------------------------------------------------------- file and resuming


class StopsAt(Progress):
    """A display that sends a signal to its own process at the n-th meta-step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_meta_init_prints_the_line_that_goes_on_to_the_same_bits(
    learnt, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "frame.safetensors"
    words = ["meta-init", "letters", f"out={out}", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(progress, "create", lambda: StopsAt(5))
        assert main(words) == 130
    told = capsys.readouterr().err.strip()
    assert told.startswith("interrupted; continue with: clprompt meta-init letters")
    assert f"out={out}" in told
    assert not out.exists()
    with pytest.raises(CheckpointError, match=r"other settings \(inner_lr\)"):
        run(settings("inner_lr=0.4"), out, progress=Progress(), command=[])
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "continued after 5 of 8 meta-steps" in captured.err
    assert captured.out.splitlines() == [str(out), str(out.with_suffix(".png"))]
    assert out.read_bytes() == learnt.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frame.png", "frame.safetensors"]


def test_the_file_is_small_and_says_what_it_was_made_from(learnt):
    backbone = Learner(settings()).backbone
    frame, facts = load_frame(learnt, backbone, 4)
    assert frame.shape == (frame_size(3, 32, 4),)
    assert frame.dtype == torch.float32
    assert learnt.stat().st_size < 4 * len(frame) + 4096
    assert (facts["side"], facts["pad"], facts["seed"], facts["steps"]) == (32, 4, 0, 8)
    assert facts["backbone"] == "vit_tiny_patch16_224"
    assert facts["sources"][1] == {"name": "synthetic 2/2", "classes": ["blob 3", "blob 4", "blob 5"]}
    assert len(facts["last_losses"]) == 3


def run_with(meta: Path, runs: Path, *overrides: str) -> int:
    strategy = f"strategy={{name: damvp, init: meta, init_file: '{meta}', pad: 4}}"
    more = ["compare=[]", "training.train_epochs=1", f"runs_dir={runs}"]
    with same_picture():
        return main(["run", "quickstart", TINY[0], strategy, *more, *overrides])


def test_a_run_names_the_source_classes_that_it_will_meet(learnt, tmp_path, capsys):
    data = "data={name: synthetic, classes: 10}"
    assert run_with(learnt, tmp_path / "a", data, "scenario.experiences=2") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clprompt: note:")]
    assert len(notes) == 1
    assert "classes that are in the stream: blob 0, blob 1, blob 2, blob 3, blob 4 and 5 more" in notes[0]
    assert run_with(learnt, tmp_path / "b", "data.test_fraction=0.8", "scenario.experiences=2") == 0
    assert "note:" not in capsys.readouterr().err


def test_a_frame_of_another_size_is_refused(learnt, tmp_path, capsys):
    assert run_with(learnt, tmp_path, "strategy.pad=5") == 2
    assert "frame of 4 pixels around images of 32, not 5 around 32" in capsys.readouterr().err
    assert run_with(learnt, tmp_path, "backbone.img_size=48") == 2
    assert "images of 32, not 4 around 48" in capsys.readouterr().err


def test_a_frame_of_another_backbone_is_noticed(tmp_path):
    backbone = Learner(settings()).backbone
    other = tmp_path / "other.safetensors"
    for change in ({"backbone": "somebody"}, {"mean": [0.1, 0.2, 0.3]}):
        save_frame(other, torch.zeros(frame_size(3, 32, 4)), backbone, 4, change)
        with pytest.warns(DataWarning, match=f"was made with {next(iter(change))}"):
            construct(DAMVPModel, backbone, pad=4, init_file=str(other))


def test_names_of_leaked_classes_are_compared_without_case_and_separators(tmp_path):
    backbone = Learner(settings()).backbone
    file = tmp_path / "frame.safetensors"
    facts = {"sources": [{"name": "pets", "classes": ["Great_Dane", "beagle"]}]}
    save_frame(file, torch.zeros(frame_size(3, 32, 4)), backbone, 4, facts)
    model = construct(DAMVPModel, backbone, pad=4, init_file=str(file))
    with pytest.warns(DataWarning, match="in the stream: great dane"):
        model.meet(["cat", "great dane"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.meet(["cat"])


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("sources=[]", "sources must be not empty, got []"),
        ("sources=[{name: synthetic, classes: [0]}]", "source synthetic has one class"),
        ("sources=[{name: synthetic, tasks: 11}]", "tasks must be 1..10"),
        ("sources=[{name: synthetic, colour: 1}]", 'unknown key "sources.0.colour"'),
        ("sources=[{classes: 0-3}]", "sources.0 must be a data set's name"),
        ("sources=[nothing]", 'unknown data set "nothing"'),
        ("sources=[{name: synthetic, classes: 0-12}]", "0-12 is not within the 10 classes"),
        ("steps=0", "steps must be at least 1"),
        ("epochs=0", "epochs must be at least 1"),
        ("inner_steps=0", "inner_steps must be at least 1"),
        ("inner_lr=0", "inner_lr must be above 0"),
        ("step_size=-1", "step_size must be above 0"),
        ("threshold=0", "threshold must be above 0"),
        ("cluster_samples=1", "cluster_samples must be at least 2"),
        ("head_lr=-1", "head_lr must be at least 0"),
        ("pad=17", "pad must be 1..16"),
        ("head=cosine", "head must be"),
        ("inner_optimizer=lion", "inner_optimizer must be"),
        ("device=nowhere", 'device "nowhere" is not there'),
        ("backbone={pretrained: false}", "backbone must be a name"),
    ],
    ids=lambda value: value if "=" in value else "",
)
def test_mistakes_are_one_line(override, text):
    with pytest.raises(ConfigError, match=text.replace("[", r"\[")) as error:
        learner(override)
    assert "\n" not in str(error.value)


def test_more_classes_than_coordinates_are_refused():
    with pytest.raises(ConfigError, match="16 coordinates for the 37 classes of letters"):
        learner("head=active", "sources=[{name: letters, count: 370}]")


def test_an_existing_file_is_not_overwritten(learnt):
    with pytest.raises(ConfigError, match="exists; remove it"):
        run(settings(), learnt, progress=Progress(), command=[])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        run(settings(), tmp_path / "none" / "x", progress=Progress(), command=[])


def test_the_command_needs_out(capsys):
    assert main(["meta-init", "letters"]) == 2
    assert "meta-init needs out=FILE" in capsys.readouterr().err


def test_the_command_names_the_nearest_configuration(capsys):
    assert main(["meta-init", "leters", "out=x"]) == 2
    assert 'did you mean "letters"?' in capsys.readouterr().err
