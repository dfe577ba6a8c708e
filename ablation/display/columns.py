"""Columns that can be added to the table of scores. This module imports nothing, so that --help stays fast."""

SCORES = (
    "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "top1", "top5", "val_loss",
)  # fmt: skip
# Column name -> (section of results.json, or "latency" for latency.json, key in the section, heading, number format).
COLUMNS = {
    **{name: ("scores", name, name, "{:.4f}") for name in SCORES},
    "parameters": ("cost", "parameters", "parameters", "{:,.0f}"),
    "gflops": ("cost", "gflops", "GFLOPs", "{:.2f}"),
    "training_images_per_second": ("cost", "images_per_second", "training images/s", "{:.0f}"),
    "peak_memory": ("cost", "peak_memory_mib", "peak memory (MiB)", "{:,.0f}"),
    "device_hours": ("cost", "device_hours", "device-hours", "{:.2f}"),
    "latency_p50": ("latency", "p50", "latency p50 (ms)", "{:.2f}"),
    "latency_p95": ("latency", "p95", "latency p95 (ms)", "{:.2f}"),
    "images_per_second": ("latency", "images_per_second", "images/s", "{:.1f}"),
}
