"""Inverse problems: restore images from measurements y = A(x0) + sigma_y eps with a diffusion model.

- `restore` does everything: it measures images, or takes measurements, and draws posterior samples.
- Operators A: `Inpainting`, `CircularBlur`, `real_blur`, `separable_blur`, `super_resolution`, `colorization`,
  `PhaseRetrieval`, `Quantization`, `JPEG`; your own: `Function`, `LinearFunction`, `from_physics` (deepinv), `Latent`.
  `TASKS` has them by name.
- A `Likelihood` is an operator with measurements and their noise level.
- Solvers `(denoise, likelihood, x, sigmas, **options) -> Iterator[x0]`: `pnp_gd`, `dps`, `daps`, `diffpir`; a `Solver`
  is the choice of one with its settings, `sample_posterior` runs it from seeds.
"""

from fewstep.inverse.adapters import Function as Function
from fewstep.inverse.adapters import LinearFunction as LinearFunction
from fewstep.inverse.adapters import from_physics as from_physics
from fewstep.inverse.blurs import CircularBlur as CircularBlur
from fewstep.inverse.blurs import gaussian_kernel as gaussian_kernel
from fewstep.inverse.blurs import gaussian_line as gaussian_line
from fewstep.inverse.blurs import motion_kernel as motion_kernel
from fewstep.inverse.blurs import real_blur as real_blur
from fewstep.inverse.daps import Langevin as Langevin
from fewstep.inverse.daps import daps as daps
from fewstep.inverse.daps import estimate_by_ode as estimate_by_ode
from fewstep.inverse.diffpir import diffpir as diffpir
from fewstep.inverse.dps import dps as dps
from fewstep.inverse.folder import RestoredImage as RestoredImage
from fewstep.inverse.latent import Latent as Latent
from fewstep.inverse.likelihood import Likelihood as Likelihood
from fewstep.inverse.masks import Inpainting as Inpainting
from fewstep.inverse.masks import box_mask as box_mask
from fewstep.inverse.masks import random_mask as random_mask
from fewstep.inverse.nonlinear import JPEG as JPEG
from fewstep.inverse.nonlinear import PhaseRetrieval as PhaseRetrieval
from fewstep.inverse.nonlinear import Quantization as Quantization
from fewstep.inverse.operator import Operator as Operator
from fewstep.inverse.pnp_gd import BALANCED as BALANCED
from fewstep.inverse.pnp_gd import PUBLISHED as PUBLISHED
from fewstep.inverse.pnp_gd import averaged as averaged
from fewstep.inverse.pnp_gd import balanced_sigmas as balanced_sigmas
from fewstep.inverse.pnp_gd import draw_by_sde as draw_by_sde
from fewstep.inverse.pnp_gd import pnp_gd as pnp_gd
from fewstep.inverse.pnp_gd import published_sigmas as published_sigmas
from fewstep.inverse.posterior import measure as measure
from fewstep.inverse.posterior import sample_posterior as sample_posterior
from fewstep.inverse.resampling import Separable as Separable
from fewstep.inverse.resampling import colorization as colorization
from fewstep.inverse.resampling import separable_blur as separable_blur
from fewstep.inverse.resampling import super_resolution as super_resolution
from fewstep.inverse.restore import Restoration as Restoration
from fewstep.inverse.restore import restore as restore
from fewstep.inverse.solver import Solver as Solver
from fewstep.inverse.tasks import TASKS as TASKS
from fewstep.inverse.tasks import task_operator as task_operator
