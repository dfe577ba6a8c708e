"""The floors of the house: a module imports only from its own floor or from those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = (
    {
        "engine.signals", "engine.ranks", "engine.terminal", "engine.storage.strict_yaml", "engine.compute.machine",
        "ablation.columns",
    },
    {
        "model", "engine.config", "engine.loading", "engine.distributed", "engine.optim", "engine.arguments",
        "engine.charts", "engine.storage.files", "engine.storage.inputs", "engine.storage.repeats",
        "engine.statistics.image_statistics",
        "engine.compute.precision", "engine.compute.inference", "engine.compute.threads",
        "detection.network.boxes", "detection.network.necks", "detection.detections", "detection.shapes",
        "detection.plausibility",
        "detection.prepare.processes",
    },
    {
        "data", "engine.checkpoint", "engine.logbook", "engine.experiment",
        "engine.trackers", "engine.compute.cost", "engine.storage.release", "engine.storage.download",
        "engine.statistics.bootstrap", "engine.statistics.precision_recall",
        "detection.network.backbones", "detection.network.anchors", "detection.network.matching",
        "detection.network.postprocess",
        "detection.transforms", "detection.drawing.pictures", "detection.annotations",
        "diffusion.model", "diffusion.schedule", "diffusion.pictures",
    },
    {
        "engine.command", "engine.doctor", "training", "engine.registry", "engine.model_card",
        "detection.drawing.charts",
        "detection.drawing.overlay", "detection.network.ssd", "detection.network.loss", "detection.dataset",
        "detection.evaluation", "detection.errors", "detection.leaks",
        "diffusion.sampling", "diffusion.data",
    },
    {
        "engine.start", "runs", "detection.anchor_fit", "detection.ceiling", "detection.prepare.layouts",
        "detection.prepare.images", "adapters.stages", "classification.data", "classification.pictures",
    },
    {
        "detection.prepare.check", "detection.prepare.shrink", "detection.prepare.labels", "detection.prepare.fetch",
        "detection.prepare.voc", "detection.prepare.yolo", "detection.prepare.convert", "detection.prepare.split",
        "classification.transforms",
        "adapters.segmentation_models", "adapters.torchvision_detection",
        "engine.launch", "engine.weights", "engine.publish", "detection.sample",
    },
    {
        "detection.data", "detection.task", "detection.record", "detection.training", "detection.test",
        "detection.detector", "detection.prediction", "detection.predict", "detection.inspection", "detection.show",
        "detection.formats", "detection.export",
        "classification.task", "classification.record", "classification.classifier", "classification.evaluate",
        "classification.predict", "train_clf_imagenet",
        "diffusion.task", "diffusion.record", "diffusion.generator", "diffusion.training", "diffusion.sample",
    },
    {"diffusion.quality", "diffusion.score"},
    {"ablation.records"},
    {
        "ablation.tables", "ablation.plan", "ablation.plots", "ablation.page", "ablation.report",
        "ablation.uncertainty",
    },
    {"ablation.comparison", "ablation.compare", "ablation.child"},
    {"ablation.runner"},
    {"ablation.slurm"},
    {"ablation.grid"},
)  # fmt: skip
FOLDERS = ("engine", "detection", "classification", "diffusion", "ablation", "adapters")
TASKS = ("classification", "detection", "diffusion")
JUDGE = "diffusion/quality.py"  # the one file of a task that may use another: a classifier judges samples
NOT_FOR_ABLATION = (
    "detection", "classification", "diffusion", "train_clf_imagenet", "runs", "training", "model", "data",
)  # fmt: skip
FLOOR = {module: number for number, modules in enumerate(FLOORS, start=1) for module in modules}


def source(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def imported(path: Path) -> set[str]:
    """Every dotted name that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_module_has_a_floor():
    files = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.stem != "__init__"}
    assert modules == FLOOR.keys()


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_imports_go_downward(module):
    upward = {name for name in imported(source(module)) & FLOOR.keys() if FLOOR[name] > FLOOR[module]}
    assert not upward


def test_ablation_knows_experiments_not_tasks():
    for path in (ROOT / "ablation").rglob("*.py"):
        assert not any(name.split(".")[0] in NOT_FOR_ABLATION for name in imported(path)), path


def test_tasks_do_not_import_each_other():
    owner = {path: path.relative_to(ROOT).parts[0] for folder in TASKS for path in (ROOT / folder).rglob("*.py")}
    for path, own in (owner | {ROOT / "train_clf_imagenet.py": "classification"}).items():
        allowed = {own, "classification"} if path == ROOT / JUDGE else {own}
        others = {*TASKS, "train_clf_imagenet"} - allowed - {path.stem}
        assert not others & {name.split(".")[0] for name in imported(path)}, path


@pytest.mark.parametrize("module", sorted(FLOOR.keys() - {"engine.distributed", "engine.launch"}))
def test_only_one_module_communicates(module):
    assert not any(name.startswith("torch.distributed") for name in imported(source(module)))
