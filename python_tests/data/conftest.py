"""Must run before any test module imports an image processor."""

from diva_engine.torchvision_guard import make_torchvision_importable

make_torchvision_importable()
