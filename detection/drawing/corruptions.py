"""Draw a validation image under all corruptions that a detector was scored with."""

from pathlib import Path

from PIL import Image

from detection.coco.annotations import CocoFile
from detection.coco.dataset import read_image
from detection.corruptions.images import corrupt
from detection.drawing.pictures import Panel, lay_out
from engine.charts import save_png
from engine.logbook import progress_bar
from records.robustness import Robustness

COLUMNS, SIDE = 4, 220  # pixels


def draw_corruptions(path: Path, val: CocoFile, record: Robustness) -> None:
    """Write a PNG of the middle validation image: the original, and under each corruption at the middle severity.

    The captions contain the score of all validation images. record: complete."""
    index, severity = len(val.images) // 2, record.severities[len(record.severities) // 2]
    pixels, metric = read_image(val, index), record.metric

    def caption(name: str, score: float | None) -> str:
        return f"{name.replace('_', ' ')}: {metric} {'undefined' if score is None else f'{score:.3f}'}"

    panels = [Panel(pixels, caption("original", record.clean[metric]), [])]
    for name in progress_bar(record.corruptions, desc=f"drawing {path.name}", unit="panel", leave=False):
        score = record.scores[name][str(severity)][metric]
        shown = corrupt(pixels, name, severity, val.images[index].id)
        panels.append(Panel(shown, caption(f"{name} {severity}", score), []))
    drawn = lay_out(panels, columns=min(COLUMNS, len(panels)), side=SIDE)
    palette = drawn.quantize(256, Image.Quantize.MEDIANCUT)  # noise needs much space in true colour
    save_png(path, drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
