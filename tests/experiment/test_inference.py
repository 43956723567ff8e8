"""A trained model at work: `clprompt predict`, `clprompt explain`, `clprompt.load`."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import same_picture
from PIL import Image

import clprompt
from clprompt import registry
from clprompt.cli.main import main
from clprompt.data import datasets_for, imagefolder
from clprompt.data.images import MAX_PIXELS
from clprompt.errors import CheckpointError, DataError
from clprompt.experiment import inference
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.training.evaluation import Evaluator


class ShowsBrightness(LinearProbeModel):
    """A linear probe that draws how bright each image is."""

    def explain(self, images: torch.Tensor) -> dict[str, Any]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2, 1))
        figure.add_subplot().bar(range(len(images)), images.mean((1, 2, 3)).tolist())
        return {"brightness / image": figure, "again": figure}


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    """A strategy that can explain, for the tests of this file."""
    registry.strategies.register("shows-brightness")(ShowsBrightness)
    yield
    registry.strategies._entries.pop("shows_brightness")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy: None) -> dict[str, Path]:
    """Finished runs by strategy: the embedded backbone, and a random one exported in full."""
    folder = tmp_path_factory.mktemp("runs")
    words = [
        "data.test_fraction=0.6",
        "scenario.experiences=2",
        "training.train_epochs=2",
        f"runs_dir={folder}",
    ]
    with same_picture():
        assert main(["run", "quickstart", *words, "strategy=shows-brightness", "compare=[]"]) == 0
    tiny = "backbone={name: vit_tiny_patch16_224, embed_dim: 16, depth: 2, num_heads: 2, img_size: 32}"
    once = "training: {train_epochs: 1}"
    counting = f"compare=[{{name: linear_probe, statistics: lda, {once}}}, {{name: prompt_cam, {once}}}]"
    words += ["strategy=ncm", counting, "export=full", tiny]
    with same_picture():
        assert main(["run", "quickstart", *words]) == 0
    return {
        json.loads((path / "results.json").read_text())["strategy"]: path
        for path in (folder / "quickstart").iterdir()
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve digits as PNG files in two folders, named after their class and number."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("images")
    data = load_digits()
    for number in range(12):
        below = folder / ("a" if number < 5 else "b")
        below.mkdir(exist_ok=True)
        picture = Image.fromarray((data.images[number] / 16 * 255).astype(np.uint8))
        picture.save(below / f"{data.target[number]}-{number:02d}.png")
    (folder / "a" / "notes.txt").write_text("no image")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ------------------------------------------------------------------------------------------------ predict


def test_predict_writes_the_likeliest_classes_of_every_image(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["predict", str(runs["shows-brightness"]), str(images), "--top-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [  # once, however many images there are
        "clprompt: note: probability is the softmax, over the classes seen, of trained logits; "
        "other heads have other scales"
    ]
    found = rows(out)
    assert list(found[0]) == ["path", "rank", "class", "probability"]
    assert [row["rank"] for row in found] == ["1", "2", "3"] * 12
    files = sorted(images.rglob("*.png"))
    assert [row["path"] for row in found[::3]] == list(map(str, files))
    for best, second in zip(found[::3], found[1::3], strict=True):
        assert float(best["probability"]) >= float(second["probability"]) > 0
    hits = sum(row["class"] == Path(row["path"]).name[0] for row in found[::3])
    assert hits >= 5  # a linear probe without rehearsal remembers the newer classes at least
    assert (
        main(
            [
                "predict",
                str(runs["shows-brightness"]),
                str(images),
                "--top-k",
                "3",
                "--out",
                str(tmp_path / "p.csv"),
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == ""
    assert (tmp_path / "p.csv").read_text() == out


def test_all_probabilities_of_an_image_add_up_to_one_whatever_the_batch_size(
    runs: dict[str, Path], images: Path
) -> None:
    model = clprompt.load(runs["shows-brightness"])
    paths = sorted(images.rglob("*.png"))
    whole = list(inference.predict(model, paths, top_k=99))
    assert len(whole) == 10 * 12
    for path in paths:
        assert sum(found.probability for found in whole if found.path == path) == pytest.approx(1)
    for size in (1, 5):
        parts = list(inference.predict(model, paths, top_k=99, batch_size=size))
        assert [p.probability for p in parts] == pytest.approx([w.probability for w in whole], abs=1e-6)
        assert [p[:3] for p in parts if p.rank == 1] == [w[:3] for w in whole if w.rank == 1]


@pytest.mark.parametrize("name", ["shows-brightness", "linear_probe"])
def test_predictions_are_those_of_the_evaluation(name: str, runs: dict[str, Path]) -> None:
    from clprompt.data import digits

    bundle = digits(test_fraction=0.6)
    model = clprompt.load(runs[name])
    test = datasets_for(bundle, model.backbone)[2]
    groups = [np.arange(len(bundle.test))]
    accuracy = Evaluator(test, bundle.test.targets, groups).run(model).accuracy
    results = json.loads((runs[name] / "results.json").read_text())
    assert accuracy == pytest.approx(results["last_accuracy"], abs=1e-9)


def test_a_loaded_model_answers_from_the_class_statistics_of_its_run(
    runs: dict[str, Path], images: Path
) -> None:
    model, paths = clprompt.load(runs["linear_probe"]), sorted(images.rglob("*.png"))
    ((_, tensors),) = inference.batches(model, paths, 99)
    with torch.no_grad():
        both = model.predictions(tensors)
    best = [model.class_names[c] for c in both.logits.argmax(1).tolist()]
    assert [p.class_name for p in inference.predict(model, paths, top_k=1)] == best
    assert both.trained is not None
    assert not torch.equal(both.trained, both.logits)


def test_an_image_may_be_grey_coloured_transparent_deep_or_turned(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    grey = np.zeros((40, 20), dtype=np.uint8)
    grey[:20] = 200
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "colour.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "transparent.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    turned = Image.fromarray(np.rot90(grey).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    model = clprompt.load(runs["ncm"])
    paths = sorted(tmp_path.glob("*.png"))
    ((_, tensors),) = inference.batches(model, paths, 99)
    assert tensors.shape == (6, 3, 32, 32)
    for path, tensor in zip(paths, tensors, strict=True):
        assert torch.allclose(tensor, tensors[0], atol=1e-4), path


def test_a_file_has_the_same_pixels_in_a_run_in_predict_in_the_models_transform_and_served(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra clprompt[export] is not installed")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    serve_onnx = importlib.import_module("serve_onnx")
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture, grey = Image.fromarray(colours), Image.fromarray(colours[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        picture.save(tmp_path / folder / "plain.png")
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / folder / "turned.png", exif=exif)
        picture.convert("CMYK").save(tmp_path / folder / "cmyk.tif")
        picture.quantize(256, dither=Image.Dither.NONE).save(tmp_path / folder / "palette.png")
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / folder / "deep.png")
        grey.convert("LA").save(tmp_path / folder / "grey-alpha.png")
    model = clprompt.load(runs["ncm"])
    paths = sorted((tmp_path / "test" / "a").iterdir())
    test = datasets_for(imagefolder(path=str(tmp_path)), model.backbone)[2]
    ((_, predicted),) = inference.batches(model, paths, 99)
    about = model.backbone.inputs.facts()
    for number, (path, pixels) in enumerate(zip(paths, predicted, strict=True)):
        with Image.open(path) as image:
            assert torch.equal(model.transform(image), pixels), path
            torch.testing.assert_close(torch.from_numpy(serve_onnx.prepare(image, about)), pixels)
        for same in (test[number][0], model.transform(path), model.transform(path.read_bytes())):
            assert torch.equal(same, pixels), path
    names = [path.stem for path in paths]
    deep, plain, turned = (predicted[names.index(name)] for name in ("deep", "plain", "turned"))
    assert torch.equal(turned, plain)
    assert torch.equal(deep[0], plain[0])
    (tmp_path / "model.pt2").write_bytes(b"PK")
    for file in ("model.pt2", "nothing.onnx"):
        with pytest.raises(SystemExit, match=rf"{file}: no model of clprompt export --format onnx: [^\n]+\Z"):
            serve_onnx.load(str(tmp_path / file))


def test_names_are_refused_by_a_strategy_that_reads_no_text(
    runs: dict[str, Path], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["predict", str(runs["ncm"]), str(images), "--names", "cat,dog"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "clprompt: error: names: NCMModel reads no text; it knows the classes that it was trained on alone\n"
    )


def test_images_are_named_by_file_folder_or_pattern_each_once(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    assert len(inference.find_images(["a", "a/0-00.png", "b/1*.png"])) == 6
    assert len(inference.find_images(["**/*.png"])) == 12


@pytest.fixture
def mixed(tmp_path: Path, images: Path) -> Path:
    """A folder of three digits, and beside them three files that are no images."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, path in enumerate(sorted((images / "a").glob("*.png"))[:3]):
        shutil.copy(path, folder / f"{2 * number}.png")
    (folder / "1.png").write_bytes(b"no image")
    (folder / "3.jpg").write_bytes(b"")
    (folder / "5.jfif").symlink_to("nowhere")
    return folder


BAD = [
    "1.png: the image cannot be read: it is not an image",
    "3.jpg: .*: it is empty",
    "5.jfif: .* a link to a",
]


def test_a_probability_says_which_head_it_comes_from(runs: dict[str, Path]) -> None:
    model = inference.load(runs["linear_probe"])  # with statistics=lda
    posterior = "log posteriors of a Gaussian for each class (statistics=lda)"
    assert inference.probability_is(model) == f"the softmax, over the classes seen, of {posterior}"
    assert inference.probability_is(model, multi_label=True) == f"the sigmoid, class by class, of {posterior}"
    alone = inference.probability_is(inference.load(runs["shows-brightness"]), multi_label=True)
    assert alone == "the sigmoid, class by class, of trained logits"
    by_name = inference.probability_is(model, by_name=True)
    assert by_name == "the softmax, over the names given, of similarities to texts"


def test_predict_names_bad_images_and_predicts_the_rest(
    runs: dict[str, Path], mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(runs["ncm"]), "--batch-size", "2"]
    assert main([*words, *(str(mixed / f"{number}.png") for number in (0, 2, 4))]) == 0
    good = capsys.readouterr().out
    assert main([*words, str(mixed)]) == 1
    out, err = capsys.readouterr()
    assert out == good  # to the bit: the batches are those of the images that can be read
    meaning, *notes, last = err.splitlines()
    assert "of scores made of class statistics;" in meaning
    assert last == "clprompt: error: 3 of 6 cannot be read and are left out"
    for note, pattern in zip(notes, BAD, strict=True):
        assert re.search(rf"^clprompt: note: .*/{pattern}", note)


def test_explain_names_bad_images_and_draws_the_rest(
    runs: dict[str, Path], mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", str(runs["shows-brightness"]), str(mixed), "--out", str(tmp_path / "drawn")]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.splitlines()[-1] == "clprompt: error: 3 of 6 cannot be read and are left out"
    assert main([*words, "--on-bad-image", "error"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{mixed}", "--on-bad-image", "error"], "1.png: the image cannot be read: it is not an image"),
        (["{mixed}/1.png", "{mixed}/3.jpg"], "it is not an image (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM)"),
        (["{mixed}/1.png", "{mixed}/3.jpg"], "(and 1 more); no image is left"),
        (["{mixed}/0.png", "--max-pixels", "63"], "it has 8 x 8 = 64 pixels; max_pixels is 63"),
        (["{mixed}", "--max-pixels", "0"], "0 is not in the range x>=1"),
        (["{mixed}", "--on-bad-image", "ignore"], "'ignore' is not one of 'skip', 'error'"),
        (["{run}"], "this is the folder of a run, which holds no photographs"),
    ],
)
def test_predict_stops_in_one_line_where_nothing_can_be_predicted_or_shall_not(
    words: list[str], message: str, runs: dict[str, Path], mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"mixed": mixed, "run": runs["ncm"]}
    assert main(["predict", str(runs["ncm"]), *(word.format(**places) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clprompt: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_file_name_that_is_no_text_is_written_as_it_is(
    runs: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    try:
        shutil.copy(next(images.glob("*/*.png")), tmp_path / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("the file system takes text alone")
    words = ["predict", str(runs["ncm"]), str(tmp_path), "--out", str(tmp_path / "p.csv")]
    assert main(words) == 0
    assert b"/\xff.png,1," in (tmp_path / "p.csv").read_bytes()


def test_the_limit_of_pixels_that_the_help_states_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("predict", "explain"):
        assert main([command, "--help"]) == 0
        assert f"[default: {MAX_PIXELS}]" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_answers_that_are_not_numbers_are_refused(value: float, runs: dict[str, Path], images: Path) -> None:
    model = clprompt.load(runs["shows-brightness"])
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "head" in name)[1] = value
    for multi_label in (False, True):
        with pytest.raises(CheckpointError, match=r"0-00\.png: the model's answer is not a number"):
            list(inference.predict(model, sorted(images.rglob("*.png")), multi_label=multi_label))


# ------------------------------------------------------------------------------------------------ load


def test_a_loaded_model_has_class_names_and_a_transform(runs: dict[str, Path], images: Path) -> None:
    model = clprompt.load(str(runs["shows-brightness"]))
    assert not model.training
    assert model.class_names == [str(digit) for digit in range(10)]
    with Image.open(images / "a" / "0-00.png") as image:
        tensor = model.transform(image)
    assert tensor.shape == (1, 16, 16)
    assert model(tensor[None]).shape == (1, 10)


def test_a_loaded_model_resizes_and_normalises_as_its_run_did(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["shows-brightness"], tmp_path / "copy")
    facts = json.loads((folder / "model.json").read_text())
    assert facts["transform"] == clprompt.load(folder).backbone.inputs.facts()
    facts["transform"] |= {"mean": [0.25], "std": [2.0]}
    del facts["checksum"]
    (folder / "model.json").write_text(json.dumps(facts))
    pixels = torch.zeros(1, 16, 16)
    assert torch.equal(clprompt.load(folder).transform(pixels), torch.full((1, 16, 16), -0.125))


def test_constants_that_do_not_fit_the_channels_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["shows-brightness"], tmp_path / "copy")
    facts = json.loads((folder / "model.json").read_text())
    facts["transform"]["mean"] = [0.5, 0.5]
    del facts["checksum"]
    (folder / "model.json").write_text(json.dumps(facts))
    with pytest.raises(
        CheckpointError, match=r"model\.json cannot be read: transform: mean must have one value"
    ):
        clprompt.load(folder)


def test_a_run_exported_in_full_needs_no_source_of_its_backbone(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(runs["ncm"], tmp_path / "copy")
    first = clprompt.load(folder)
    facts = json.loads((folder / "model.json").read_text())
    facts["backbone"]["checkpoint"] = "/there/is/no/such/file.safetensors"
    facts["backbone"]["pretrained"] = True
    (folder / "model.json").write_text(json.dumps(facts))
    again = clprompt.load(folder)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(first(image), again(image))


def test_a_backbone_with_other_weights_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["shows-brightness"], tmp_path / "copy")
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(CheckpointError, match="other weights than in the run"):
        clprompt.load(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_damaged_export_is_named(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["shows-brightness"], tmp_path / "copy")
    (folder / name).write_text("{")
    with pytest.raises(CheckpointError, match=name):
        clprompt.load(folder)


# ------------------------------------------------------------------------------------------------ explain


def test_explain_draws_what_the_method_shows(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = [str(runs["shows-brightness"]), str(images / "a"), "--out", str(tmp_path / "drawn")]
    assert main(["explain", *words]) == 0
    drawn = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in drawn] == ["brightness___image.png", "again.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert image.format == "PNG"


def test_explain_looks_at_the_classes_that_are_named(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = [str(runs["prompt_cam"]), str(images / "a" / "0-00.png"), "--out", str(tmp_path / "drawn")]
    heights = []
    for classes in ("3", "3,8,5"):
        assert main(["explain", *words, "--classes", classes]) == 0
        (drawn,) = capsys.readouterr().out.splitlines()
        assert Path(drawn).name == "heads_01.png"
        with Image.open(drawn) as image:
            heights.append(image.height)
    assert heights[1] > heights[0]  # a row for each class


# ------------------------------------------------------------------------------------------------ mistakes


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(DataError, match=r"broken\.jpg: the image cannot be read: "):
        inference.read_image(tmp_path / "broken.jpg")
    Image.new("L", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"cut\.png: the image cannot be read: "):
        inference.read_image(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "{run}"], "Missing argument 'IMAGES...'"),
        (["predict", "{run}", "{images}", "--top-k", "0"], "0 is not in the range x>=1"),
        (["predict", "{run}", "nowhere.png"], "nowhere.png: there is no such image"),
        (["predict", "{run}", "{images}/*.gif"], "*.gif: there is no such image"),
        (["predict", "{run}", "{run}/checkpoint"], "checkpoint: no image in this folder"),
        (["predict", "{run}", "{images}/a/notes.txt"], "notes.txt: the image cannot be read"),
        (["predict", "nowhere", "{images}"], "nowhere is not the folder of a run: there is no such folder"),
        (["predict", "{images}", "{images}"], "is not the folder of a run: it holds no config.yaml"),
        (["predict", "{unfinished}", "{images}"], "holds no trained model; finish the run first"),
        (["predict", "{run}", "{images}", "--device", "gpu"], 'device "gpu" is not there'),
        (
            ["predict", "{run}", "{images}", "--out", "no/such/folder/p.csv"],
            "cannot write no/such/folder/p.csv",
        ),
        (
            ["explain", "{ncm}", "{images}"],
            "explains nothing: it has no explain(images); those that have are coop, damvp, ",
        ),
        (["explain", "{run}", "{images}", "--out", "{images}/a/notes.txt"], "cannot make the folder"),
        (["explain", "{run}", "{images}", "--classes", "3"], "strategy shows-brightness takes no classes"),
        (
            ["explain", "{cam}", "{images}", "--classes", "3,dog"],
            'classes: no class of the run is called "dog"; there are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9',
        ),
        (["explain", "{cam}", "{images}", "--classes", ""], 'no class of the run is called ""'),
        (["explain", "{cam}", "{images}/a/notes.txt", "--classes", "3"], "the image cannot be read"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    message: str,
    runs: dict[str, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(
        runs["ncm"], tmp_path / "unfinished", ignore=lambda folder, names: {"model.json"} & {*names}
    )
    places = {
        "run": runs["shows-brightness"],
        "ncm": runs["ncm"],
        "cam": runs["prompt_cam"],
        "images": images,
        "unfinished": "unfinished",
    }
    capsys.readouterr()
    assert main([word.format(**places) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clprompt: error: ")
    assert err.count("\n") == 1
    assert message in err
