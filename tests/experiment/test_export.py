"""What a model is exported to computes what the model does: every strategy, batches of any size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_methods import SMALL
from torch import Tensor

import clprompt
from clprompt.cli.main import main
from clprompt.errors import ExportError
from clprompt.experiment import export, inference
from clprompt.prompting.model import Encoded, PromptModel
from clprompt.registry import strategies
from clprompt.testing.bench import Workbench, tiny_backbone, tiny_model, tiny_vit

OLD = Path(__file__).parents[1] / "fixtures" / "old-run"
RUN = OLD / "finished"
EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"

#: Arguments with which a method can do with two blocks, or has most in its graph.
SHALLOW: dict[str, dict[str, Any]] = {
    "coda_prompt": {"layers": (0, 1)},
    "dualprompt": {"g_layers": (0,), "e_layers": (1,)},
    "flyprompt": {"layers": (0, 1)},
    "multilane": {"prompt_blocks": 1, "selectors": 4, "prompts": 2, "lane_chunk": 1},
    "semantic_proxies": {"layers": (0, 1), "class_layers": (1,)},
    "mvp": {"g_layers": (0,), "e_layers": (1,)},
    "zero_shot": {"cache_size": 2},  # the one form that looks at its state to predict
}
#: Strategies whose graphs hold all operators that need care; `pytest --onnx all` asks of every one.
#: A stable sort, a top-k with masks, lanes, float64.
IN_ONNX = ("dualprompt", "tcpa", "multilane", "slda")


def trained(name: str) -> PromptModel:
    """A tiny model of two experiences."""
    method = strategies.get(name).target
    arguments = SMALL.get(name, {}) | SHALLOW.get(name, {})
    bench = Workbench(method, **arguments)
    model = tiny_model(method, tiny_backbone(method) if method.needs_text else tiny_vit(depth=2), **arguments)
    bench.run(model, experiences=2, train=bench.few)
    return model.eval()


@pytest.mark.parametrize("name", strategies.names())
def test_what_every_strategy_is_exported_to_gives_its_logits(name: str, pytestconfig: pytest.Config) -> None:
    model = trained(name)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    program = export.as_program(export.Logits(model), images)
    forms = [(program.module(), 1e-6)]
    if name in IN_ONNX or pytestconfig.getoption("--onnx") == "all":
        pytest.importorskip("onnxruntime", reason="the extra clprompt[export] is not installed")
        pytest.importorskip("onnxscript", reason="the extra clprompt[export] is not installed")
        forms.append((export.onnx_session(export.as_onnx(program).SerializeToString()), 1e-5))
    for batch in (images, images[:1]):
        with torch.no_grad():
            logits = model(batch)
        scale = float(logits[logits.isfinite()].abs().max().clamp(min=1))
        for form, tolerance in forms:
            torch.testing.assert_close(form(batch), logits, rtol=0, atol=tolerance * scale)


# ------------------------------------------------------------------------------------ from a run folder


@pytest.fixture(scope="module")
def model() -> PromptModel:
    return clprompt.load(RUN)


def test_onnxruntime_alone_serves_an_exported_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: PromptModel
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra clprompt[export] is not installed")
    pytest.importorskip("onnxscript", reason="the extra clprompt[export] is not installed")
    file = tmp_path / "model.onnx"
    assert main(["export", str(RUN), "--format", "onnx", "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    images = sorted((OLD / "images").iterdir())
    (broken := tmp_path / "broken.png").write_bytes(images[0].read_bytes()[:60])
    served = subprocess.run(
        [sys.executable, "-X", "importtime", str(EXAMPLE), str(file), str(broken), *map(str, images)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert served.returncode == 1, served.stderr
    (told,) = [line for line in served.stderr.splitlines() if not line.startswith("import time:")]
    assert told.startswith(f"{broken}: ")
    imported = {line.split("|")[-1].strip() for line in served.stderr.splitlines()}
    assert "onnxruntime" in imported
    assert not {"torch", "clprompt", "timm"} & imported
    best = inference.predict(model, images, top_k=1)
    lines = [f"{p.path}: {p.class_name} ({100 * p.probability:.1f} %)" for p in best]
    assert served.stdout.splitlines() == lines


def test_an_exported_program_gives_logits_without_clprompts_classes_and_names_them(
    tmp_path: Path, model: PromptModel
) -> None:
    file = tmp_path / "model.pt2"
    assert main(["export", str(RUN), "--format", "torch-export", "--out", str(file)]) == 0
    about = {export.KEY: ""}
    program = torch.export.load(file, extra_files=about)
    images = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=0, atol=1e-6)
    facts = json.loads(about[export.KEY])
    assert facts["class_names"] == model.class_names
    assert facts["preprocessing"]["image_size"] == [16, 16]


def test_a_run_exported_to_safetensors_is_loaded_without_its_backbone(
    tmp_path: Path, model: PromptModel
) -> None:
    assert main(["export", str(RUN), "--format", "safetensors", "--out", str(tmp_path / "whole")]) == 0
    facts = json.loads((tmp_path / "whole" / "model.json").read_text())
    assert facts["class_names"] == model.class_names
    loaded = clprompt.load(tmp_path / "whole")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert load_file(tmp_path / "whole" / "model.safetensors").keys() == model.state_dict().keys()


def test_an_exported_folder_keeps_of_a_path_the_last_name(tmp_path: Path, model: PromptModel) -> None:
    run, whole = Path(shutil.copytree(RUN, tmp_path / "run")), tmp_path / "whole"
    facts = json.loads((run / "model.json").read_text())
    path = "/home/ada/prompts.safetensors"  # what began from it is in the state
    facts["strategy"]["init_file"] = path
    facts["files"] = {"init_file": {"path": path, "sha256": "0" * 64}}
    (run / "model.json").write_text(json.dumps(facts))
    assert main(["export", str(run), "--format", "safetensors", "--out", str(whole)]) == 0
    text = (whole / "model.json").read_text()
    assert "prompts.safetensors" in text
    assert "/home" not in text
    loaded = clprompt.load(whole)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


class Asks(PromptModel):
    """Its logits hang on what is in an image, by a branch of Python."""

    def encode(self, images: Tensor, cached: Any = None) -> Encoded:
        features = self.backbone.features(images)
        return Encoded(features if float(images.mean()) > 0 else -features)


def test_what_cannot_be_exported_is_refused_in_one_line_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(Asks, tiny_vit(depth=1))
    model.observe(torch.tensor([0, 1]))
    model.class_names = ["a", "b"]
    monkeypatch.setattr(inference, "load", lambda folder: model)
    out = tmp_path / "model.pt2"
    assert main(["export", str(RUN), "--format", "torch-export", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clprompt: error: strategy vpt_deep cannot be written as torch-export: Could")
    assert "test_export.py, line " in line
    assert "return Encoded(features if float(images.mean()) > 0 else -features)" in line
    assert line.endswith("self.experience_index has it")
    assert not out.exists()


def test_a_model_that_became_another_function_is_not_written() -> None:
    model = tiny_model(strategies.get("linear_probe").target, tiny_vit(depth=1)).eval()
    model.observe(torch.tensor([0, 1]))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ExportError, match="gives other logits"):
        export.largest_difference(model, images, lambda batch: model(batch) + 1.0)
    with pytest.raises(ExportError, match="logits of other classes"):
        export.largest_difference(model, images, lambda batch: model(batch)[:, :1])
