"""The network for other programs: exported graphs, and a package for the bioimage.io model zoo."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
