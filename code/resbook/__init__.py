"""The code of the course book "Residual networks, executed"."""

from resbook.torchvision_operators import declare_missing_operators

declare_missing_operators()  # before anything imports torchvision

from resbook.arithmetic import conv_macs, conv_output_size, conv_parameters, pool_output_size, receptive_field
from resbook.batchnorm import BatchNorm2d
from resbook.blocks import BasicBlock, Block, Bottleneck, Shortcut
from resbook.device import default_device
from resbook.gradients import GradientTrace, trace_gradients
from resbook.initialization import initialize
from resbook.networks import ResNet, cifar_resnet, resnet18, resnet34, resnet50, resnet101, resnet152
from resbook.shapes import ShapeError, ShapeTrace, trace_shapes
from resbook.source import show_source
