"""Networks: DDPM++, NCSN++, ADM, EDM2, control branches, discriminators and feature networks; and those of your own."""

from fewstep.nets.registry import register as register
