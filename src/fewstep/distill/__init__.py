"""Distillation: turning a teacher into a one- or few-step generator. One Method a file."""

from fewstep.distill.sid import SiD as SiD
from fewstep.distill.sid import sid_loss as sid_loss
