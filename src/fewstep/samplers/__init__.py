"""Samplers: generator functions `(denoise, x, sigmas, **options) -> Iterator[x]`; see `fewstep.samplers.contract`."""

from fewstep.core.plan import Sampler as Sampler
from fewstep.samplers.ablation import Ablation as Ablation
from fewstep.samplers.catalog import NAMED as NAMED
from fewstep.samplers.catalog import find as find
from fewstep.samplers.contract import counted as counted
from fewstep.samplers.contract import last as last
from fewstep.samplers.distilled import multistep as multistep
from fewstep.samplers.distilled import posterior as posterior
from fewstep.samplers.dpm_solver import ancestral as ancestral
from fewstep.samplers.dpm_solver import dpmpp_2m as dpmpp_2m
from fewstep.samplers.dpm_solver import dpmpp_2m_sde as dpmpp_2m_sde
from fewstep.samplers.edm import churn as churn
from fewstep.samplers.edm import euler as euler
from fewstep.samplers.edm import heun as heun
from fewstep.samplers.ito_taylor import check_differentiable as check_differentiable
from fewstep.samplers.ito_taylor import ito_taylor as ito_taylor
from fewstep.samplers.ito_taylor import ito_taylor_sde as ito_taylor_sde
from fewstep.samplers.ito_taylor import taylor2 as taylor2
from fewstep.samplers.sde import Kappa as Kappa
from fewstep.samplers.sde import euler_maruyama as euler_maruyama
from fewstep.samplers.sde import stochastic_heun as stochastic_heun
from fewstep.samplers.second_order_sde import second_order_sde as second_order_sde
