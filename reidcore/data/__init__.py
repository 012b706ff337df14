"""Reading images and making batches."""

from reidcore.data.loader import Loader, test_batches
from reidcore.data.reading import as_pixels, read_image

__all__ = ["Loader", "as_pixels", "read_image", "test_batches"]
