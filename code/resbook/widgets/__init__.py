"""Explorers: interactive figures that work in a page without a kernel, and compute anew where there is one."""

from resbook.widgets.batchnorm import BatchNormExplorer
from resbook.widgets.gradients import GradientExplorer
from resbook.widgets.replay import DegradationReplay
from resbook.widgets.shapes import ShapeExplorer
from resbook.widgets.workshop import BlockWorkshop
