"""What is written of a segmentation: label images, outlines, measurements, overlays, records."""
