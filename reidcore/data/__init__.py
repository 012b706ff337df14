"""Reading images and making batches."""

from reidcore.data.cache import ImageCache, cache_room
from reidcore.data.loader import Loader, test_batches
from reidcore.data.reading import as_pixels, image_size, leave_out_unreadable, read_image

__all__ = [
    "ImageCache",
    "Loader",
    "as_pixels",
    "cache_room",
    "image_size",
    "leave_out_unreadable",
    "read_image",
    "test_batches",
]
