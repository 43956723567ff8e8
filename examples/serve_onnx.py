"""Serve a model that `clprompt export RUN --format onnx` wrote, with onnxruntime, numpy and pillow alone.

python examples/serve_onnx.py model.onnx photo.jpg another.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def load(path):
    """The session, and what clprompt wrote of classes and images."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map["clprompt.json"])
    except Exception as error:  # onnxruntime has a class for each way in which a file is no model
        reason = " ".join(str(error).split())
        raise SystemExit(f"{path}: no model of clprompt export --format onnx: {reason}") from None
    if about["preprocessing"].get("corrupt"):
        raise SystemExit("the model was trained on images that are drawn otherwise (data.corrupt)")
    return session, about


def upright(image):
    """A PIL image as clprompt reads it: turned as its EXIF data say, 16 bits of grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).clip(0, 65535)
    values = values if 0 < values.max() <= 255 else values // 257  # some 16-bit files hold 8 bits
    return Image.fromarray(values.astype(np.uint8))


def prepare(image, spec):
    """A PIL image -> normalised float32 [C, H, W]: upright, cover the size, keep the centre."""
    height, width = spec["image_size"]
    image = upright(image)
    image = image.convert("L" if spec["channels"] == 1 else "RGB")
    resize, resample = spec.get("test_resize"), Image.Resampling[spec["interpolation"].upper()]
    if resize == "squash":
        image = image.resize((width, height), resample)
    else:
        target = max(height / image.height, width / image.width)
        scale, whole = (target, round) if resize is None else (resize / min(image.size), int)
        across, down = max(width, whole(image.width * scale)), max(height, whole(image.height * scale))
        image = image.resize((across, down), resample) if (across, down) != image.size else image
        left, top = round((across - width) / 2), round((down - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, -1) / 255
    return ((pixels - np.float32(spec["mean"])) / np.float32(spec["std"])).transpose(2, 0, 1)


def classify(session, about, images):
    """PIL images -> for each the likeliest class and its probability."""
    batch = np.stack([prepare(image, about["preprocessing"]) for image in images])
    (logits,) = session.run(["logits"], {"images": batch})
    if about["multi_label"]:
        probabilities = 1 / (1 + np.exp(-logits))
    else:
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
    return [(about["class_names"][row.argmax()], float(row.max())) for row in probabilities]


def main(model, *paths):
    """Print a line for each image; one that cannot be read is told on stderr, and the others are served."""
    session, about = load(model)
    images = {}
    for path in paths:
        try:
            images[path] = Image.open(path)
            images[path].load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            images.pop(path, None)
            print(f"{path}: {error}", file=sys.stderr)
    answers = classify(session, about, images.values()) if images else []
    for path, (name, probability) in zip(images, answers, strict=True):
        print(f"{path}: {name} ({100 * probability:.1f} %)")
    return 0 if len(images) == len(set(paths)) else 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: serve_onnx.py MODEL.onnx IMAGE...")
    sys.exit(main(*sys.argv[1:]))
