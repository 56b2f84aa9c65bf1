"""Export of a network to bioimage.io, ONNX, TorchScript and PyTorch graphs."""
