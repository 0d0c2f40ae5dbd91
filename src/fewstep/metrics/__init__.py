"""Metrics of images. `evaluate` measures images against a reference; every value comes with its protocol.

- `evaluate`: all metrics of a set of images in one pass. `Options` names them, `make_reference` prepares statistics, which
  `save_reference` and `load_reference` keep in a file (`ReferenceData`).
- Images to measure (`ImageSource`): `from_path`, `from_images`, `from_function` of seeds, or `fs.generated`.
- `evaluate_pairs` and `evaluate_sets` compare images with their targets by `psnr`, `ssim` and LPIPS (`PerceptualDistance`).
- A `MetricResult` is a value with its protocol: `compare` makes one table of several lists of them, `markdown` a table of
  repetitions; `write_results` and `read_results` store them.
- An `Extractor` computes features: `PixelFeatures`, a `FeatureNetwork`, or your own.
"""

from fewstep.runtime.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__, __file__
)  # the names are in `__init__.pyi`; reports read results without torch
