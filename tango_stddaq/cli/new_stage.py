"""`stddaq new-stage NAME`: a package with a stage of one's own that works and passes its tests."""

import re
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from tango_stddaq.config_entries import OwnStageConfig
from tango_stddaq.errors import FileError
from tango_stddaq.stage_names import NAME_PATTERN, class_name


class Kind(StrEnum):
    """What a stage makes of an image."""

    IMAGE = "image"
    VALUE = "value"


_PYPROJECT: Final = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "The stage $name of a tango_stddaq data acquisition"
requires-python = ">=3.11"
dependencies = ["tango-stddaq", "numpy"]

[project.optional-dependencies]
test = ["pytest"]

# This line is how `stddaq stage $name` and `stddaq up` find the stage.
[project.entry-points."tango_stddaq.stages"]
$name = "$package.stage:$class_name"

# The device server, by the name that Tango's Starter runs it by.
[project.scripts]
$tango_class = "tango_stddaq.devices.own_stage:main"

[tool.hatch.build.targets.wheel]
packages = ["$package"]
"""
_README: Final = """# $name

A stage of a tango_stddaq data acquisition.

```sh
pip install -e '.[test]'
pytest
```

To run it, add it to the configuration, and start the system with `stddaq up`:

```json
"stages": [{"stage": "$name", "source": "image"}]
```

or by itself beside a system that runs: `stddaq stage $name CONFIG.json`.
"""
_IMAGE_STAGE: Final = '''"""What happens to an image."""

import numpy as np

from tango_stddaq.stages.own_stage import Image, ImageStage, Setting


class $class_name(ImageStage):
    """Images with an offset subtracted."""

    name = "$name"
    offset = Setting(10, "Subtracted from every pixel.", unit="counts", minimum=0)

    def process(self, pixels: np.ndarray, image: Image) -> np.ndarray | None:
        """Return the new image; None if it shall not go on."""
        return pixels - np.minimum(pixels, self.offset).astype(pixels.dtype)
'''
_IMAGE_TEST: Final = '''"""The stage with a real ring and real sockets around it."""

import numpy as np

from $package.stage import $class_name
from tango_stddaq import testing


def test_the_offset_is_subtracted() -> None:
    pixels = np.array([[0, 5, 10], [15, 20, 1000]], np.uint16)
    found = testing.run($class_name, [pixels, pixels + 1], {"offset": 10})
    np.testing.assert_array_equal(found.images[1], [[0, 0, 0], [5, 10, 990]])
    np.testing.assert_array_equal(found.images[2], [[0, 0, 1], [6, 11, 991]])
    assert found.counters["images"] == 2


def test_a_setting_is_changed_while_it_runs() -> None:
    pixels = np.full((4, 6), 100, np.uint16)
    with testing.running($class_name, like=pixels) as bench:
        bench.send(pixels)
        assert (bench.result()[1] == 90).all()
        bench.stage.offset = 40
        bench.send(pixels)
        assert (bench.result()[1] == 60).all()
'''
_VALUE_STAGE: Final = '''"""What is found in an image."""

import numpy as np

from tango_stddaq.stages.own_stage import Image, Setting, Value, ValueStage


class $class_name(ValueStage):
    """The mean of every image, and an alarm where it is too high."""

    name = "$name"
    limit = Setting(1000.0, "Mean above which the attribute is in ALARM.", unit="counts")
    mean = Value("counts", "Mean of the last image.", high="limit")

    def process(self, pixels: np.ndarray, image: Image) -> None:
        """Look at an image."""
        self.mean = pixels.mean()
'''
_VALUE_TEST: Final = '''"""The stage with a real ring and real sockets around it."""

import numpy as np

from $package.stage import $class_name
from tango_stddaq import testing


def test_every_image_has_its_mean() -> None:
    images = [np.full((4, 6), level, np.uint16) for level in (1, 7, 500)]
    found = testing.run($class_name, images)
    assert [values["mean"] for values in found.values] == [1, 7, 500]
    assert found.counters["images"] == 3


def test_above_the_limit_it_alarms() -> None:
    pixels = np.full((4, 6), 50, np.uint16)
    with testing.running($class_name, like=pixels, settings={"limit": 49.0}) as bench:
        bench.send(pixels)
        assert $class_name.mean.is_alarming(bench.stage)
        bench.stage.limit = 51.0
        assert not $class_name.mean.is_alarming(bench.stage)
'''


def new_stage(
    name: Annotated[str, typer.Argument(help="Of the stage: lower case, with hyphens, like roi-sum.")],
    kind: Annotated[
        Kind, typer.Option(help="image: makes images of images; value: finds numbers in them.")
    ] = Kind.IMAGE,
    output: Annotated[Path, typer.Option(help="Directory that the package is made in.")] = Path(),
) -> None:
    """Make a package with a stage of your own, ready to be installed and changed."""
    if not re.match(NAME_PATTERN, name) or len(name) > 40:
        raise typer.BadParameter(
            f"{name!r}: lower case letters and digits with hyphens, like roi-sum", param_hint="NAME"
        )
    root = output / name
    if root.exists():
        raise FileError(f"{root}: exists already; choose another name or --output")
    for path, text in files_of(name, kind).items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    typer.echo(f"{root} is there. Now:\n\n  cd {root}\n  pip install -e '.[test]'\n  pytest\n")
    typer.echo(f"Then write your code in {_package(name)}/stage.py.")


def files_of(name: str, kind: Kind) -> dict[str, str]:
    """Return the files of the package: path in it to text."""
    package = _package(name)
    words = {
        "name": name,
        "package": package,
        "distribution": f"stddaq-{name}",
        "class_name": class_name(name),
        "tango_class": OwnStageConfig(stage=name).tango_class,
    }
    stage, test = (_IMAGE_STAGE, _IMAGE_TEST) if kind is Kind.IMAGE else (_VALUE_STAGE, _VALUE_TEST)
    templates = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{package}/__init__.py": '"""The stage $name."""\n',
        f"{package}/stage.py": stage,
        "tests/test_stage.py": test,
    }
    return {path: Template(text).substitute(words) for path, text in templates.items()}


def _package(name: str) -> str:
    return f"stddaq_{name.replace('-', '_')}"
