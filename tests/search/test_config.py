from typing import Any

import pytest

from mae_curriculum.commands.config import SearchConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.training.config import OptimConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1 or null, got 0"),
        ({"time_limit": "soon"}, "time_limit must be"),
        ({"pretrain": PretrainConfig(time_limit="5")}, "pretrain.time_limit: .* --time_limit"),
        ({"tolerance": 1.5}, "tolerance is a difference of accuracies, 0 to 1, got 1.5"),
        ({"method": "sequential", "tolerance": 0.1}, "tolerance is for greedy"),
        (
            {"method": "sequential", "pretrain": PretrainConfig(optim=OptimConfig(warmup=None, warmup_epochs=2))},
            "pretrain.optim.warmup_epochs: real epochs depend on the sizes",
        ),
        ({"sizes": (96,)}, r"sizes: two or more, all different, got \[96\]"),
        ({"sizes": (96, 96)}, "sizes: two or more, all different"),
        ({"sizes": (96, 256)}, r"sizes are in 1\.\.224"),
        ({"stages": 1}, "stages must be at least 2, got 1"),
        ({"finish_epochs": 0}, "finish_epochs must be at least 1, got 0"),
        ({"curricula": ("none", "efficienttrain")}, "curricula are for halving"),
        ({"method": "halving"}, r"curricula: two or more files with different names, got \[\]"),
        ({"method": "halving", "curricula": ("a/x.yaml", "b/x.yaml")}, "curricula: two or more files with different"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**settings)
