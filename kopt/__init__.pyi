from . import layers as layers
from . import testing as testing
from .estimators import KerasClassifier as KerasClassifier
from .estimators import KerasRegressor as KerasRegressor
from .optimizers import LAMB as LAMB
from .optimizers import SGD as SGD
from .optimizers import Adadelta as Adadelta
from .optimizers import Adagrad as Adagrad
from .optimizers import Adam as Adam
from .optimizers import Adamax as Adamax
from .optimizers import AdamW as AdamW
from .optimizers import AMSGrad as AMSGrad
from .optimizers import Ftrl as Ftrl
from .optimizers import Lion as Lion
from .optimizers import Nadam as Nadam
from .optimizers import Optimizer as Optimizer
from .optimizers import RMSprop as RMSprop
from .optimizers import Slot as Slot
from .search import TunerSearchCV as TunerSearchCV

__version__: str
