"""Networks: DDPM++, NCSN++, ADM, EDM2, control branches, discriminators and feature networks; and those of your own.

- U-Nets, each built from a frozen dataclass: `SongUNet` (`SongConfig`; `ncsnpp` fills one in), `ADMUNet` (`ADMConfig`),
  `EDM2UNet` (`EDM2Config`). `Uncertainty` is EDM2's log-variance head, `Controlled` adds a control branch. `EDM_SIZES` holds
  EDM's published configurations.
- `Network` and `Features` are what a network of your own must provide; `register` lets model folders store it.
- Discriminators: `PairDiscriminator`, `ProjectedDiscriminator`. Their features: `Classifier`, `PretrainedFeatures`, `Pyramid`.
- `compile_blocks` and `recompute_blocks` trade compilation time and computation for speed and memory.
"""

from fewstep.core.network import Features as Features
from fewstep.core.network import Network as Network
from fewstep.nets.adm import ADMConfig as ADMConfig
from fewstep.nets.adm import ADMUNet as ADMUNet
from fewstep.nets.controlled import Controlled as Controlled
from fewstep.nets.discriminators import PairDiscriminator as PairDiscriminator
from fewstep.nets.discriminators import ProjectedDiscriminator as ProjectedDiscriminator
from fewstep.nets.edm2 import EDM2Config as EDM2Config
from fewstep.nets.edm2 import EDM2UNet as EDM2UNet
from fewstep.nets.edm2 import Uncertainty as Uncertainty
from fewstep.nets.execution import compile_blocks as compile_blocks
from fewstep.nets.execution import recompute_blocks as recompute_blocks
from fewstep.nets.features import Classifier as Classifier
from fewstep.nets.features import FeatureNetwork as FeatureNetwork
from fewstep.nets.features import PretrainedFeatures as PretrainedFeatures
from fewstep.nets.features import Pyramid as Pyramid
from fewstep.nets.registry import register as register
from fewstep.nets.sizes import EDM_SIZES as EDM_SIZES
from fewstep.nets.song import SongConfig as SongConfig
from fewstep.nets.song import SongUNet as SongUNet
from fewstep.nets.song import ncsnpp as ncsnpp
