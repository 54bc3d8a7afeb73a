"""What every pretraining of the tests would compute again to the same result; the server of processes.py imports it."""

import torch

from mae_curriculum.config import load
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import open_images
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.tracking.hardware import peak_flops
from tests.runs import options

for prog in ("python -m mae_curriculum pretrain", "config"):  # of a command, and of the settings that a run has saved
    load(PretrainConfig, options(curriculum="efficienttrain"), prog=prog)
open_images(DataConfig("digits"))
peak_flops(torch.device("cpu"), torch.float32)
