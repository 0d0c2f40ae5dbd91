"""Metrics of images. `evaluate` measures images against a reference; every value comes with its protocol.

- `evaluate`: all metrics of a set of images in one pass. `Options` names them, `make_reference` prepares statistics, which
  `save_reference` and `load_reference` keep in a file (`ReferenceData`).
- Images to measure (`ImageSource`): `from_path`, `from_images`, `from_function` of seeds, or `fs.generated`.
- `evaluate_pairs` and `evaluate_sets` compare images with their targets by `psnr`, `ssim` and LPIPS (`PerceptualDistance`).
- A `MetricResult` is a value with its protocol: `compare` makes one table of several lists of them, `markdown` a table of
  repetitions; `write_results` and `read_results` store them.
- An `Extractor` computes features: `PixelFeatures`, a `FeatureNetwork`, or your own.
"""

from fewstep.metrics.evaluate import Options as Options
from fewstep.metrics.evaluate import evaluate as evaluate
from fewstep.metrics.evaluate import make_reference as make_reference
from fewstep.metrics.extractors import Extractor as Extractor
from fewstep.metrics.extractors import FeatureNetwork as FeatureNetwork
from fewstep.metrics.extractors import PixelFeatures as PixelFeatures
from fewstep.metrics.image import PerceptualDistance as PerceptualDistance
from fewstep.metrics.image import psnr as psnr
from fewstep.metrics.image import ssim as ssim
from fewstep.metrics.pairs import evaluate_pairs as evaluate_pairs
from fewstep.metrics.pairs import evaluate_sets as evaluate_sets
from fewstep.metrics.protocol import MetricResult as MetricResult
from fewstep.metrics.protocol import compare as compare
from fewstep.metrics.protocol import markdown as markdown
from fewstep.metrics.protocol import read_results as read_results
from fewstep.metrics.protocol import write_results as write_results
from fewstep.metrics.references import ReferenceData as ReferenceData
from fewstep.metrics.references import load_reference as load_reference
from fewstep.metrics.references import save_reference as save_reference
from fewstep.metrics.sources import ImageSet as ImageSet
from fewstep.metrics.sources import ImageSource as ImageSource
from fewstep.metrics.sources import from_function as from_function
from fewstep.metrics.sources import from_images as from_images
from fewstep.metrics.sources import from_path as from_path
