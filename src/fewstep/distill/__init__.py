"""Distillation: turning a teacher into a one- or few-step generator. One Method a file."""

from fewstep.distill.dmd2 import DMD2 as DMD2
from fewstep.distill.dmd2 import dmd_loss as dmd_loss
from fewstep.distill.gdd import GDD as GDD
from fewstep.distill.gdd import INNATE as INNATE
from fewstep.distill.ncvsd import NCVSD as NCVSD
from fewstep.distill.ncvsd import vsd_loss as vsd_loss
from fewstep.distill.sid import SiD as SiD
from fewstep.distill.sid import sid_loss as sid_loss
from fewstep.distill.sida import SiDA as SiDA
