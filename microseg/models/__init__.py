"""The segmentation network: encoders, pyramid pooling, decoder, domain classifiers, files."""
