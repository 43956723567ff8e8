"""Pictures of patches and names, of contexts and words."""

import pytest
import torch
import torch.nn.functional as F
from image_text import tiny_image_text
from torch import nn

from clprompt.backbones.tokenizers import WordTokenizer
from clprompt.prompting.text.explain import nearest_words, patch_similarity
from clprompt.prompting.text.model import TextModel

WORDS = ["a", "photo", "of", "cat", "dog", "."]


class InContext(TextModel):
    """Rows of frozen text, and a context that stands for itself."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.context = nn.Parameter(self.text.embed(torch.tensor(self.text.tokenizer.encode("cat dog")[1:3])))

    def live_rows(self, names):
        return self.frozen_rows(names)

    def context_rows(self):
        return self.context


@pytest.fixture(scope="module")
def model():
    tokenizer = WordTokenizer(WORDS)
    model = InContext(tiny_image_text(tokenizer=tokenizer, vocabulary=tokenizer.vocabulary))
    model.name_classes({0: "cat", 1: "dog", 2: "photo"})
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    model.end_experience()
    return model.eval()


def test_a_context_row_that_is_a_word_is_nearest_to_that_word(model):
    near = nearest_words(model.text, model.context, count=3)
    assert [row[0].word for row in near] == ["cat", "dog"]
    assert near[0][0].distance == pytest.approx(0, abs=1e-3)
    assert near[0][1].distance > 0.1


def test_start_end_and_padding_are_no_words(model):
    words = {near.word for near in nearest_words(model.text, model.context, count=99)[0]}
    assert words == set(WORDS)


def test_a_patch_is_compared_like_a_feature(model):
    images = torch.rand(2, 3, 16, 16)
    backbone = model.backbone
    tokens = backbone.run(backbone.embed(images))
    maps = patch_similarity(backbone, tokens, model.rows)
    assert maps.shape == (2, 2, 4, 4)
    patch = tokens[1, backbone.num_prefix_tokens + 4 * 2 + 3]  # in row 2, column 3
    feature = F.normalize(backbone.project(backbone.final(patch[None, None]))[0, 0], dim=-1)
    assert torch.allclose(maps[1, :, 2, 3], model.rows @ feature, atol=1e-5)


def test_explain_draws_the_likeliest_names_and_the_words(model):
    drawn = model.explain(torch.rand(2, 3, 16, 16))
    assert set(drawn) == {"patches", "words"}
    titles = [axes.get_title() for axes in drawn["patches"].axes]
    assert sum(title.startswith(("cat", "dog")) for title in titles) == 4
    assert not any(title.startswith("photo") for title in titles)  # it was not seen


def test_explain_draws_named_classes_beside_the_likeliest_one(model):
    for classes, names in (([0], {"cat"}), ([0, 1], {"cat", "dog"})):
        figure = model.explain(torch.rand(2, 3, 16, 16), classes=classes)["patches"]
        assert names <= {axes.get_title().split(" ")[0] for axes in figure.axes}
