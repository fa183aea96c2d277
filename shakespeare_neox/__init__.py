__version__ = "0.1.0"

# What is used most, at the top: `import shakespeare_neox as neox; neox.train("quickstart")`. Each
# name is imported when it is asked for, so `import shakespeare_neox` itself takes no time.

import importlib
import sys

NAMES = {  # name -> the module that has it, and its name there
    "GPT": ("engine.decode", "GPT"),
    "GPTNeoX": ("engine.decode", "GPT"),
    "generate": ("engine.serve", "generate"),
    "load_corpus": ("engine.corpora", "load_corpus"),
    "load_tokenizer": ("engine.tokens", "load_tokenizer"),
    "open_checkpoint": ("engine.checkpoints", "open_checkpoint"),
    "stream": ("engine.serve", "stream"),
    "train": ("engine.run", "train"),
}
__all__ = [
    "GPT",
    "GPTNeoX",
    "generate",
    "load_corpus",
    "load_tokenizer",
    "open_checkpoint",
    "stream",
    "train",
]

TYPE_CHECKING = False
if TYPE_CHECKING:  # for editors, which read this file and do not run it
    from .engine.checkpoints import open_checkpoint
    from .engine.corpora import load_corpus
    from .engine.decode import GPT
    from .engine.run import train
    from .engine.serve import generate, stream
    from .engine.tokens import load_tokenizer

    GPTNeoX = GPT


def __getattr__(name):
    "A name of the table, imported now"
    if name in NAMES:
        module, there = NAMES[name]
        value = getattr(importlib.import_module(f"{__name__}.{module}"), there)
        globals()[name] = value
        return value
    near = ""
    if not name.startswith("_"):
        from .engine.base import nearest

        near = nearest(name, [*NAMES])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}", name=name)


def __dir__():
    "The names of the table, and what every module has"
    return sorted({*globals(), *NAMES} - {"NAMES", "TYPE_CHECKING", "Package", "importlib", "sys"})


class Package(type(sys)):
    "This package: `train` and `generate` stay its functions when its modules of these names come"

    def __setattr__(self, name, value):
        if name not in NAMES or not isinstance(value, type(sys)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = Package
