"""From loaded labels or label sets to a data set: label maps, both parts, and what is wrong with them."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from clprompt import schema
from clprompt.data.class_names import Naming, read_names
from clprompt.data.images import ImageSource, Selected
from clprompt.data.names import class_name
from clprompt.data.normalisation import Normalisation
from clprompt.data.plan import Plan, make_plan
from clprompt.data.reading import Reading, readable_files
from clprompt.data.repeats import merged, tell_repeats
from clprompt.data.selection import (
    Classes,
    HeldOut,
    Selection,
    chosen_classes,
    drawn_test,
    drawn_test_of_sets,
    listed_classes,
    ranks,
)
from clprompt.data.views import Augment, Views
from clprompt.errors import DataError, tell
from clprompt.targets import is_label_sets

T = TypeVar("T")


@dataclass(frozen=True, init=False)
class DataBundle:
    """A data set: training and test images, class names by class id, and how images are shown to a model.

    Attributes:
        name: what messages call it.
        train: training images and their targets.
        test: test images and their targets.
        class_names: by class id, as they are shown.
        views: how they are shown, see :class:`clprompt.data.Views`.
        cache: whether prepared images stay in memory between epochs and evaluations.
        domain_names: by the domain ids of both parts; None where the data have no domains.
        normalisation: published mean and deviation of its pixels; None where there are none.
        own_names: by class id, what the data themselves call the classes: what selects and orders them.
        synonyms: by class id, further names beside the shown one; None unless ``class_names`` were given.

    ``augment`` may be given by itself, in place of the views or to change them.
    """

    name: str
    train: ImageSource
    test: ImageSource
    class_names: list[str]
    views: Views
    cache: bool
    domain_names: list[str] | None
    normalisation: Normalisation | None
    own_names: list[str]
    synonyms: list[list[str]] | None

    def __init__(
        self,
        name: str,
        train: ImageSource,
        test: ImageSource,
        class_names: list[str],
        views: Views | Augment = Views(),  # noqa: B008 - frozen
        cache: bool = True,
        domain_names: list[str] | None = None,
        normalisation: Normalisation | None = None,
        own_names: list[str] | None = None,
        synonyms: list[list[str]] | None = None,
        *,
        augment: Augment | None = None,
    ) -> None:
        if isinstance(views, str):
            augment = views
            views = Views()
        self.__dict__.update(
            name=name,
            train=train,
            test=test,
            class_names=class_names,
            views=views if augment is None else replace(views, augment=augment),
            cache=cache,
            domain_names=domain_names,
            normalisation=normalisation,
            own_names=class_names if own_names is None else own_names,
            synonyms=synonyms,
        )

    def names(self) -> dict[int, list[str]]:
        """All names of each class by class id, the shown one first."""
        synonyms = self.synonyms or [[]] * len(self.class_names)
        return {c: [shown, *synonyms[c]] for c, shown in enumerate(self.class_names)}

    @property
    def augment(self) -> Augment:
        """How training images are varied."""
        return self.views.augment

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """What its parts are known by; see :mod:`clprompt.data.fingerprint`."""
        return {
            "class names": list(self.class_names),
            **({} if self.synonyms is None else {"synonyms": [list(names) for names in self.synonyms]}),
            **({} if self.domain_names is None else {"domain names": list(self.domain_names)}),
            "training images": self.train.fingerprint(),
            "test images": self.test.fingerprint(),
        }


def files_of_test_images(bundle: DataBundle) -> tuple[list[str], str]:
    """The path of each test image's file, and what those of all images begin with, cut at a folder's name.

    Returns:
        [] and "" where the images are no files of their own.
    """
    train, test = bundle.train.files(), bundle.test.files()
    if train is None or test is None:
        return [], ""
    common = os.path.commonprefix([*train, *test])  # noqa: RUF071 - cut at the end of a folder's name
    return test, common[: common.rfind("/") + 1]


def plan_over(bundle: DataBundle, section: Mapping[str, Any], seed: int) -> Plan:
    """The plan that a ``scenario`` section names, over the training images; see :func:`make_plan`."""
    return make_plan(
        section,
        bundle.train.targets,
        seed=seed,
        data=bundle.name,
        class_names=bundle.own_names,
        domains=bundle.train.domains,
        domain_names=bundle.domain_names,
    )


def takes_views(
    *, normalisation: Normalisation | None = None, **defaults: Any
) -> Callable[[Callable[..., DataBundle]], Callable[..., DataBundle]]:
    """Decorate a data set's function: how images and classes are shown is among its arguments.

    Those are the fields of :class:`Views`, ``class_names`` and ``validation``. The function knows nothing of
    them: they are set in the bundle that it returns. They stand last, or before ``cache`` where it has that
    argument.

    Args:
        normalisation: set in the bundle, too.
        **defaults: the data set's own: ``augment="standard"``.
    """
    fields = schema.field_parameters(Views, defaults=defaults)
    further = {kind: schema.field_parameters(kind) for kind in (Naming, HeldOut)}

    def decorate(function: Callable[..., DataBundle]) -> Callable[..., DataBundle]:
        @functools.wraps(function)
        def showing(**named: Any) -> DataBundle:
            views = Views(**{field.name: named.pop(field.name, field.default) for field in fields})
            naming, held_out = _taken(Naming, named), _taken(HeldOut, named)
            bundle = _validated(function(**named), held_out.validation)
            bundle = replace(bundle, views=views, normalisation=normalisation or bundle.normalisation)
            return _named(bundle, naming)

        schema.show_fields(showing, Views, fields, before="cache")
        for kind, of_kind in further.items():
            schema.show_fields(showing, kind, of_kind, before="cache")
        return showing

    return decorate


def _taken(settings: type[T], named: dict[str, Any]) -> T:
    """Settings of what is theirs among named arguments, from which it is taken away."""
    keys = [key for key in inspect.signature(settings).parameters if key in named]
    return settings(**{key: named.pop(key) for key in keys})


def _validated(bundle: DataBundle, share: float | None) -> DataBundle:
    """With some training images in place of the test images; see :class:`HeldOut`."""
    if share is None:
        return bundle
    train, name, selection = bundle.train, f"{bundle.name}, data.validation", Selection(test_fraction=share)
    if is_label_sets(train.targets):
        held_out = drawn_test_of_sets(name, train.targets, selection)
    else:
        held_out = drawn_test(name, train.targets, bundle.own_names, selection)
    tell(
        f"{bundle.name}: {held_out.sum()} training images are tested on in place of the test set, as "
        f"data.validation={share} says"
    )
    return replace(bundle, train=_of(train, ~held_out), test=_of(train, held_out))


def _of(source: ImageSource, chosen: np.ndarray) -> ImageSource:
    rows = np.flatnonzero(chosen)
    domains = None if source.domains is None else source.domains[rows]
    return ImageSource(Selected(source.load, rows), source.targets[rows], source.encoded, domains)


def _named(bundle: DataBundle, naming: Naming) -> DataBundle:
    if naming.class_names is None:
        return bundle
    names = read_names(naming.class_names, bundle.own_names)
    shown = [first for first, *_ in names]
    _tell_alike(bundle.name, shown)
    return replace(bundle, class_names=shown, own_names=bundle.own_names, synonyms=[s for _, *s in names])


def assemble(
    name: str,
    load: Callable[[int], Any],
    labels: Sequence[Any] | np.ndarray,
    is_test: np.ndarray | None,
    selection: Selection,
    *,
    augment: Augment = "none",
    cache: bool = True,
    encoded: bool = True,
    names: Sequence[str] | None = None,
    domains: Sequence[Any] | np.ndarray | None = None,
) -> DataBundle:
    """A data set from all its images, training and test, with one label each.

    Args:
        name: of the data set; messages begin with it.
        load: index -> image; see :class:`ImageSource`.
        labels: one per image, integers or text, [n].
        is_test: which images are test images, bool [n]; None to draw them by ``selection``.
        selection: which images are used.
        augment: see :class:`DataBundle`; of no use to a function that :func:`takes_views`.
        cache: see :class:`DataBundle`.
        encoded: see :class:`ImageSource`.
        names: class names by integer label; the labels themselves by default.
        domains: where each image comes from, integers or text, [n]; None where the data do not say. They are
            numbered as labels are, those of the images that are used alone.

    Raises:
        DataError: no image, a class without training image, a class that is too small to be split.
        ConfigError: ``selection`` names classes that are not there.
    """
    if len(labels) == 0:
        raise DataError(f"{name}: there is no image")
    targets, class_names = class_ids(labels, names, name)
    _tell_alike(name, class_names)
    keep = np.arange(len(targets))
    if selection.classes is not None:
        classes = chosen_classes(selection.classes, class_names)
        class_names = [class_names[c] for c in classes]
        keep = np.flatnonzero(np.isin(targets, classes))
        targets = np.searchsorted(classes, targets[keep])
    held_out = drawn_test(name, targets, class_names, selection) if is_test is None else is_test[keep]
    _check_split(name, targets, held_out, class_names)
    domain_ids = domain_names = None
    if domains is not None:
        domain_ids, domain_names = class_ids(domains, None, f"{name}, domains")
    train, test = _parts(load, keep, targets, held_out, selection, encoded, domain_ids)
    if domain_names is not None:
        train, test, domain_names = _numbered_domains(train, test, domain_names)
    tell_repeats(name, train, test)
    return DataBundle(name, train, test, class_names, augment, cache, domain_names)


def assemble_sets(
    name: str,
    load: Callable[[int], Any],
    hot: np.ndarray,
    is_test: np.ndarray | None,
    selection: Selection,
    *,
    augment: Augment = "none",
    cache: bool = True,
    encoded: bool = True,
    names: Sequence[str],
) -> DataBundle:
    """A data set from all its images, training and test, with a set of labels each.

    An image that loses its last label to ``selection.classes`` is left out; one that never had a label stays.

    Args:
        name: of the data set; messages begin with it.
        load: index -> image; see :class:`ImageSource`.
        hot: label sets, multi-hot 0/1, [n, C].
        is_test: which images are test images, bool [n]; None to draw them by ``selection``.
        selection: which images are used.
        augment: see :class:`DataBundle`; of no use to a function that :func:`takes_views`.
        cache: see :class:`DataBundle`.
        encoded: see :class:`ImageSource`.
        names: class names, C of them.

    Raises:
        DataError: no training image, no test image, too few images to be split.
        ConfigError: ``selection`` names classes that are not there.
    """
    if len(hot) == 0:
        raise DataError(f"{name}: there is no image")
    names = [class_name(each) for each in names]
    keep = np.arange(len(hot))
    if selection.classes is not None:
        classes = listed_classes(selection.classes, names)
        names = [names[c] for c in classes]
        keep = np.flatnonzero(hot[:, classes].any(1) | ~hot.any(1))
        hot = hot[keep][:, classes]
    used = hot.any(0)
    if used.any() and not used.all():
        tell(f"{name}: {_listed(names, np.flatnonzero(~used))} no image; left out")
        names = [names[c] for c in np.flatnonzero(used)]
        hot = hot[:, used]
    _tell_alike(name, names)
    held_out = drawn_test_of_sets(name, hot, selection) if is_test is None else is_test[keep]
    _check_parts(name, (~held_out).sum(), held_out.sum())
    for part, what in ((hot[~held_out], "training"), (hot[held_out], "test")):
        if not part.any():
            raise DataError(f"{name}: no {what} image has a label")
    _check_classes(name, hot[~held_out].sum(0), hot[held_out].sum(0), names, "average precision")
    train, test = _parts(load, keep, hot, held_out, selection, encoded)
    tell_repeats(name, train, test)
    return DataBundle(name, train, test, list(names), augment, cache)


def assemble_set_files(
    name: str,
    paths: Sequence[str],
    hot: np.ndarray,
    is_test: np.ndarray,
    *,
    classes: Classes | None,
    reading: Reading,
    names: Sequence[str],
) -> DataBundle:
    """A data set of image files in two parts, a set of labels each; a file's entries in a part are joined.

    Args:
        name: of the data set; messages begin with it.
        paths: of the files, n of them.
        hot: label sets, multi-hot 0/1, [n, C].
        is_test: which of them are test images, bool [n].
        classes: the classes to keep.
        reading: how they are read.
        names: class names, C of them.

    Raises:
        DataError: see :func:`readable_files` and :func:`assemble_sets`.
    """
    paths, hot, is_test = merged(name, paths, hot, is_test)
    load, use = readable_files(name, paths, reading)
    return assemble_sets(
        name,
        Selected(load, use),
        hot[use],
        is_test[use],
        Selection(classes=classes),
        cache=reading.cache,
        names=names,
    )


def _parts(
    load: Callable[[int], Any],
    keep: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    selection: Selection,
    encoded: bool,
    domains: np.ndarray | None = None,
) -> list[ImageSource]:
    """Training and test images within their limits.

    Args:
        load: index -> image.
        keep: the indices that are used, [n].
        targets: of those, [n] or [n, C].
        test: which of those are test images, bool [n].
        selection: the limits, and the seed of their draws.
        encoded: see :class:`ImageSource`.
        domains: the domain id of every image that there is.
    """
    parts = []
    for which, limit in ((~test, selection.train_per_class), (test, selection.test_per_class)):
        where = np.flatnonzero(which)
        if limit is not None:
            where = where[ranks(targets[where], selection.split_seed, "subset") < limit]
        rows = keep[where]
        of_rows = None if domains is None else domains[rows]
        parts.append(ImageSource(Selected(load, rows), targets[where], encoded, of_rows))
    return parts


def _numbered_domains(
    train: ImageSource, test: ImageSource, names: Sequence[str]
) -> tuple[ImageSource, ImageSource, list[str]]:
    """Both parts with domain ids without gaps, and the names of the domains that occur in one of them."""
    assert train.domains is not None
    assert test.domains is not None
    used = np.unique(np.concatenate([train.domains, test.domains]))
    train = replace(train, domains=np.searchsorted(used, train.domains))
    test = replace(test, domains=np.searchsorted(used, test.domains))
    return train, test, [names[domain] for domain in used]


def class_ids(
    labels: Sequence[Any] | np.ndarray, names: Sequence[str] | None = None, name: str = "data"
) -> tuple[np.ndarray, list[str]]:
    """Arbitrary labels as class ids 0..C-1 and the name of each class.

    Classes are sorted: integers, and text that consists of integers, by value, other text by its characters.

    Args:
        labels: integers or text, [n].
        names: class names by integer label.
        name: of the data set, for messages.

    Returns:
        int64 [n], and C names.

    Raises:
        DataError: labels that are neither integers nor text, or beyond ``names``.
    """
    array = np.asarray(labels)
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: the label {error.object!r} is not text in UTF-8") from error
    if array.dtype.kind not in "iuU" or array.ndim != 1:
        raise DataError(
            f"{name}: labels must be one integer or text per image, got {array.dtype} {list(array.shape)}"
        )
    if array.dtype.kind == "U":
        array = np.array([class_name(text) for text in array.tolist()])
    values, ids = np.unique(array, return_inverse=True)
    if array.dtype.kind == "U" and all(re.fullmatch(r"-?\d{1,18}", value) for value in values):
        order = np.argsort([int(value) for value in values], kind="stable")
        ids, values = np.argsort(order)[ids], values[order]
    if names is None or array.dtype.kind == "U":
        return ids.astype(np.int64), [str(value) for value in values]
    if values[0] < 0 or values[-1] >= len(names):
        wrong = values[0] if values[0] < 0 else values[-1]
        raise DataError(f"{name}: label {wrong} has no name; there are names for 0..{len(names) - 1}")
    return ids.astype(np.int64), [class_name(str(names[int(value)])) for value in values]


def _check_split(name: str, targets: np.ndarray, test: np.ndarray, names: Sequence[str]) -> None:
    train_sizes, test_sizes = (np.bincount(targets[part], minlength=len(names)) for part in (~test, test))
    _check_parts(name, train_sizes.sum(), test_sizes.sum())
    _check_classes(name, train_sizes, test_sizes, names, "accuracy")


def _check_classes(
    name: str, train_sizes: np.ndarray, test_sizes: np.ndarray, names: Sequence[str], measure: str
) -> None:
    untrained = np.flatnonzero(train_sizes == 0)
    if untrained.size:
        raise DataError(
            f"{name}: {_listed(names, untrained)} test images, but no training image; "
            "leave it out with data.classes, which lists those to keep"
        )
    untested = np.flatnonzero(test_sizes == 0)
    if untested.size:
        tell(f"{name}: {_listed(names, untested)} no test image; no {measure} can be told for it")
    single = np.flatnonzero(train_sizes == 1)
    if single.size:
        tell(f"{name}: {_listed(names, single)} one training image only")


def _tell_alike(name: str, class_names: Sequence[str]) -> None:
    """Classes of their own may have one name, as two of ImageNet's do."""
    alike = [each for each, count in Counter(class_names).items() if count > 1]
    if alike:
        tell(f'{name}: {len(alike)} names are those of several classes; the first: "{alike[0]}"')


def _check_parts(name: str, train: int, test: int) -> None:
    for count, what in ((train, "training"), (test, "test")):
        if not count:
            raise DataError(f"{name}: there is no {what} image")


def _listed(names: Sequence[str], which: np.ndarray) -> str:
    if which.size == 1:
        return f'class "{names[which[0]]}" has'
    return f'{which.size} classes ("{names[which[0]]}", "{names[which[1]]}"{", ..." * (which.size > 2)}) have'
