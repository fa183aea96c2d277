"The public names of the lessons and of the engine, for notebooks: from shakespeare_neox.all import *"
from .engine.base import *
from .engine.checkpoints import *
from .engine.corpora import *
from .engine.recipe import *
from .engine.report import *
from .engine.run import *
from .engine.serve import *
from .engine.show import *
from .engine.state import *
from .engine.tokens import *
from .engine.tune import *
from .data import *
from .generate import *
from .model import *
from .optimizer import *
from .tokenizer import *
