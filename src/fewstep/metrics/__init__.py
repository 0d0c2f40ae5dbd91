"""Metrics of images: `fs.evaluate` measures them against a reference, every value with its protocol.

- `evaluate`: all metrics of a set of images in one pass; `Options` names them, `make_reference` prepares statistics.
- `pairs`, `image`: PSNR, SSIM and LPIPS of images and their targets.
- `sources`: images to measure, from a path, a function of seeds, or `fs.generated`.
- `references`: real images or their statistics, and their files.
- `protocol`: results, tables, comparisons. `catalog`: the names of metrics.
- `extractors`, `weights`: feature networks, and where their weights come from.
- `distribution`, `neighbours`: the distances themselves. `statistics`, `cost`: what they need, and what they cost.
"""
