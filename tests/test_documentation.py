"""README.md and docs/: links lead somewhere, named files exist, and the worked example runs."""

import importlib.util
import re
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from unittest import mock

import pytest
import torch

from detection.coco.annotations import read_split
from detection.network.backbones import BACKBONES
from detection.network.necks import NECKS
from detection.task import DetectionConfig, DetectionTask
from engine.config import load_config
from engine.strict_yaml import read_yaml
from records.experiment import FREE_FIELDS
from runs import rehearse

ROOT = Path(__file__).parent.parent
config_page = SourceFileLoader("configs_page", str(ROOT / "docs/configs.py")).load_module()


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
EXTENDING = ROOT / "docs/extending.md"


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in HEADING.findall(prose(page))}


def each_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(test)


@each_page
def test_links_lead_to_existing_files_and_headings(page):
    for target, _, anchor in (link.partition("#") for link in LINK.findall(prose(page)) if "://" not in link):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@each_page
def test_named_modules_scripts_and_configs_exist(page):
    text = page.read_text()
    modules = {module.rstrip(".") for module in re.findall(r" -m ([a-z_][a-z_\d.]*)", text)}
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    files = set(re.findall(r"\b(?:python|sbatch(?: --\S+)*) ([\w/]+\.(?:py|sbatch))\b", text))
    files |= set(re.findall(r"\bconfigs/\w+\.yaml", text))
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_readme_links_to_every_page():
    linked = {ROOT / link.partition("#")[0] for link in LINK.findall(prose(ROOT / "README.md"))}
    assert [page for page in PAGES[1:] if page not in linked] == []


def test_readme_has_fewer_than_230_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) < 230


def test_config_page_is_up_to_date():
    assert config_page.PAGE.read_text() == config_page.page(), "outdated: run python docs/configs.py"


def test_citation_has_the_project_version_and_license():
    citation = read_yaml(ROOT / "CITATION.cff")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (str(citation["version"]), citation["license"]) == (project["version"], project["license"])


def test_experiments_page_lists_the_fields_that_may_change_on_resume():
    page = " ".join((ROOT / "docs/experiments.md").read_text().split())
    sentence = page[page.index("A run may be resumed with different values of") : page.index("any other change")]
    assert set(re.findall(r"`([a-z_.]+)`", sentence)) == FREE_FIELDS


# ---- the worked example in docs/extending.md ------------------------------------------------------------------


@pytest.fixture
def example() -> str:
    """Run the first Python block of the page, and remove its table entries afterwards."""
    code = re.search(r"^```python\n(.*?)^```$", EXTENDING.read_text(), re.DOTALL | re.MULTILINE)[1]
    with mock.patch.dict(BACKBONES), mock.patch.dict(NECKS):
        exec(code, {})
        yield code


def test_worked_example_is_short_and_its_detector_trains(example, sample_root):
    assert len([line for line in example.splitlines() if line.strip()]) < 30
    overrides = (f"data.root={sample_root}", "model.backbone=SwinSlimBackbone_C", "model.neck=weighted_fpn")
    config = load_config(ROOT / "configs/quickstart.yaml", (*overrides, "train.batch_size=4"), DetectionConfig)
    task = DetectionTask(config, read_split(config.data, "train"), read_split(config.data, "val"))
    shares = task.model.neck.weights.detach().clone()
    rehearse(task, torch.device("cpu"))
    assert not torch.equal(task.model.neck.weights, shares)
