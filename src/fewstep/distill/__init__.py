"""Distillation: turning a teacher into a one- or few-step generator. One Method a file.

For methods of your own: copies of the teacher (`frozen`, `trainable`, `student`, `generator_of`, `check_teacher`) and how a
generator makes images while it trains (`one_step`, `few_steps`, `simulated`, over `uniform_levels` or others).
"""

from fewstep.distill.dmd2 import DMD2 as DMD2
from fewstep.distill.dmd2 import dmd_loss as dmd_loss
from fewstep.distill.gdd import GDD as GDD
from fewstep.distill.gdd import INNATE as INNATE
from fewstep.distill.gdd import generator_of as generator_of
from fewstep.distill.ncvsd import NCVSD as NCVSD
from fewstep.distill.ncvsd import vsd_loss as vsd_loss
from fewstep.distill.players import check_teacher as check_teacher
from fewstep.distill.players import few_steps as few_steps
from fewstep.distill.players import frozen as frozen
from fewstep.distill.players import one_step as one_step
from fewstep.distill.players import simulated as simulated
from fewstep.distill.players import student as student
from fewstep.distill.players import trainable as trainable
from fewstep.distill.players import uniform_levels as uniform_levels
from fewstep.distill.sid import SiD as SiD
from fewstep.distill.sid import sid_loss as sid_loss
from fewstep.distill.sida import SiDA as SiDA
