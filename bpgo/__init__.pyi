# The public face of the package: bpgo/__init__.py imports these names when they are first used.
from .config import Config as Config
from .config import ConfigError as ConfigError
from .config import read_config as read_config
from .evaluation import Scores as Scores
from .evaluation import evaluate as evaluate
from .generators import load_generator as load_generator
from .objective import Advantages as Advantages
from .objective import bpgo as bpgo
from .objective import clipped_surrogate as clipped_surrogate
from .objective import crt as crt
from .objective import crt_rewards as crt_rewards
from .objective import group_advantages as group_advantages
from .objective import grpo as grpo
from .objective import k_from_kappa as k_from_kappa
from .objective import ras as ras
from .objective import ras_weights as ras_weights
from .objective import surrogate_loss as surrogate_loss
from .objective import teleboost as teleboost
from .priors import Constant as Constant
from .priors import EmpiricalBayes as EmpiricalBayes
from .priors import PerPrompt as PerPrompt
from .priors import Prior as Prior
from .priors import RunningMean as RunningMean
from .rewards import RewardError as RewardError
from .rewards import load_reward as load_reward
from .sde import sde_step as sde_step
from .sde import sigma_grid as sigma_grid
from .trainer import Trainer as Trainer

__version__: str
