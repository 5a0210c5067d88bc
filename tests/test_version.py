"""The version stands in one place."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import lightning_invariance

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_the_version_is_a_release_of_semantic_versioning() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", lightning_invariance.__version__)


def test_the_project_takes_it_from_there() -> None:
    text = PROJECT.read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in text
    (path,) = re.findall(r'\[tool\.hatch\.version\]\npath = "(.*)"', text)
    assert f'__version__ = "{lightning_invariance.__version__}"' in (PROJECT.parent / path).read_text(encoding="utf-8")


def test_the_installed_version_is_the_same() -> None:
    try:
        installed = version("lightning-invariance")
    except PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    assert installed == lightning_invariance.__version__
