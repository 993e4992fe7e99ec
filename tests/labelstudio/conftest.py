"""Fixtures with a real Label Studio: one server for the session, one project for each test."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.labelstudio import install
from tests.labelstudio.proxy import Proxy
from tests.labelstudio.studio import Person, Studio, running

PLAIN_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="expression" toName="image" choice="single">
    <Choice value="Neutral" alias="neutral"/>
    <Choice value="Happiness" alias="happiness"/>
    <Choice value="Sadness" alias="sadness"/>
  </Choices>
</View>
"""
"""A small configuration for tests that care about other things."""


@pytest.fixture(scope="session")
def label_studio() -> None:
    """Leave the test out where Label Studio is not installed."""
    if not install.installed():
        pytest.skip("Label Studio is not installed (make system installs it)")


@pytest.fixture(scope="session")
def studio(label_studio: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Run one server for the session; never stop it in a test, take `own_studio` for that."""
    with running(tmp_path_factory.mktemp("studio")) as started:
        yield started


@pytest.fixture
def own_studio(label_studio: None, tmp_path: Path) -> Iterator[Studio]:
    """Run a server for this test alone, which may kill it and start it again (three seconds each)."""
    with running(tmp_path / "studio") as started:
        yield started


@dataclass(frozen=True)
class People:
    """Two annotators with accounts in Label Studio."""

    ann: Person
    ben: Person


@pytest.fixture(scope="session")
def people(studio: Studio) -> People:
    """Return the two annotators of the session's server."""
    return People(studio.join("ann"), studio.join("ben"))


@pytest.fixture
def project_id(studio: Studio, request: pytest.FixtureRequest) -> int:
    """Make an empty project with `PLAIN_CONFIG` and return its id."""
    with studio.server() as server:
        return int(server.create_project(request.node.name[:50], PLAIN_CONFIG)["id"])


@pytest.fixture
def proxy(studio: Studio) -> Iterator[Proxy]:
    """Run a fault proxy before the session's server."""
    with Proxy(studio.url) as started:
        yield started
