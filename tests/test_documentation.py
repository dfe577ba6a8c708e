"""README.md and docs/: what they link to and name is there, and what they show runs."""

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
    """Return the name under which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
EXTENDING = ROOT / "docs/extending.md"


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in HEADING.findall(prose(page))}


def each_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(test)


@each_page
def test_every_link_leads_to_a_file_of_the_project_and_its_anchor_to_a_heading(page):
    for target, _, anchor in (link.partition("#") for link in LINK.findall(prose(page)) if "://" not in link):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@each_page
def test_every_module_script_and_config_that_is_named_exists(page):
    text = page.read_text()
    modules = {module.rstrip(".") for module in re.findall(r" -m ([a-z_][a-z_\d.]*)", text)}
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    files = set(re.findall(r"\b(?:python|sbatch(?: --\S+)*) ([\w/]+\.(?:py|sbatch))\b", text))
    files |= set(re.findall(r"\bconfigs/\w+\.yaml", text))
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_every_page_is_linked_from_the_readme():
    linked = {ROOT / link.partition("#")[0] for link in LINK.findall(prose(ROOT / "README.md"))}
    assert [page for page in PAGES[1:] if page not in linked] == []


def test_readme_has_fewer_than_230_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) < 230


def test_the_page_of_configs_is_what_the_classes_say():
    assert config_page.PAGE.read_text() == config_page.page(), "python docs/configs.py writes it anew"


def test_the_citation_is_of_this_version():
    citation = read_yaml(ROOT / "CITATION.cff")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (str(citation["version"]), citation["license"]) == (project["version"], project["license"])


def test_the_page_on_experiments_names_every_field_that_may_differ_on_resuming():
    page = " ".join((ROOT / "docs/experiments.md").read_text().split())
    sentence = page[page.index("A run may be resumed with different values of") : page.index("any other change")]
    assert set(re.findall(r"`([a-z_.]+)`", sentence)) == FREE_FIELDS


# ---- the worked example of docs/extending.md ------------------------------------------------------------------


@pytest.fixture
def example() -> str:
    """Its first block of Python, run; what it adds to the tables is gone afterwards."""
    code = re.search(r"^```python\n(.*?)^```$", EXTENDING.read_text(), re.DOTALL | re.MULTILINE)[1]
    with mock.patch.dict(BACKBONES), mock.patch.dict(NECKS):
        exec(code, {})
        yield code


def test_a_detector_with_the_row_and_the_neck_of_the_short_example_learns(example, sample_root):
    assert len([line for line in example.splitlines() if line.strip()]) < 30
    overrides = (f"data.root={sample_root}", "model.backbone=SwinSlimBackbone_C", "model.neck=weighted_fpn")
    config = load_config(ROOT / "configs/quickstart.yaml", (*overrides, "train.batch_size=4"), DetectionConfig)
    task = DetectionTask(config, read_split(config.data, "train"), read_split(config.data, "val"))
    shares = task.model.neck.shares.detach().clone()
    rehearse(task, torch.device("cpu"))
    assert not torch.equal(task.model.neck.shares, shares)
