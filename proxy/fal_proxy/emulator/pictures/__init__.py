"""Pictures made from nothing but a seed: the emulator's stand-in for an image model. Needs Pillow, knows no fal."""

from .gallery import Gallery
from .painting import paint
from .picture import Picture, encode, render

__all__ = ["Gallery", "Picture", "encode", "paint", "render"]
