"""Published adaptation methods to compare with, each as the smallest change of `microseg.training.adaptation`."""
