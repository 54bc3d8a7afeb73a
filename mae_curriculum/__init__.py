"""Pretrain masked autoencoders under a curriculum of image size and augmentation strength.

The Python API; each name is imported when it is first used, so `import mae_curriculum` itself does not load torch.

    import mae_curriculum as mc

    result = mc.pretrain(mc.PretrainConfig(run=Path("runs/mine"), data=mc.DataConfig(source="PHOTOS")))
    features = mc.load_encoder("runs/mine").features(images)  # (b, c, h, w) -> (b, d)
    found = mc.embed(mc.load_encoder("runs/mine"), "PHOTOS")  # found.names, found.labels, found.vectors (n, d)
    clock = mc.Clock(mc.Curriculum.preset("efficienttrain"), ...)  # the curriculum in a training loop of your own
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_curriculum.commands.plan import compute_plan as plan
    from mae_curriculum.config import ConfigError
    from mae_curriculum.curriculum.clock import Clock
    from mae_curriculum.curriculum.config import Augmentation, Curriculum, Stage
    from mae_curriculum.curriculum.low_frequency import low_frequency_crop
    from mae_curriculum.data.config import DataConfig
    from mae_curriculum.evaluation.config import KnnConfig
    from mae_curriculum.evaluation.embedding import Embeddings, embed
    from mae_curriculum.evaluation.encoder import Encoder, load_encoder
    from mae_curriculum.model.config import ModelConfig
    from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
    from mae_curriculum.pretraining import PretrainResult
    from mae_curriculum.pretraining import run_pretraining as pretrain
    from mae_curriculum.pretraining_config import PretrainConfig
    from mae_curriculum.run.config import SavingConfig
    from mae_curriculum.tracking.config import TrackingConfig
    from mae_curriculum.training.config import OptimConfig
    from mae_curriculum.version import __version__

__all__ = [
    "Augmentation",
    "Clock",
    "ConfigError",
    "Curriculum",
    "DataConfig",
    "Embeddings",
    "Encoder",
    "KnnConfig",
    "MaskedAutoencoder",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "PretrainResult",
    "SavingConfig",
    "Stage",
    "TrackingConfig",
    "__version__",
    "embed",
    "load_encoder",
    "low_frequency_crop",
    "plan",
    "pretrain",
]

_SOURCES = {
    "Augmentation": "curriculum.config",
    "Clock": "curriculum.clock",
    "ConfigError": "config",
    "Curriculum": "curriculum.config",
    "DataConfig": "data.config",
    "Embeddings": "evaluation.embedding",
    "Encoder": "evaluation.encoder",
    "KnnConfig": "evaluation.config",
    "MaskedAutoencoder": "model.masked_autoencoder",
    "ModelConfig": "model.config",
    "OptimConfig": "training.config",
    "PretrainConfig": "pretraining_config",
    "PretrainResult": "pretraining",
    "SavingConfig": "run.config",
    "Stage": "curriculum.config",
    "TrackingConfig": "tracking.config",
    "__version__": "version",
    "embed": "evaluation.embedding",
    "load_encoder": "evaluation.encoder",
    "low_frequency_crop": "curriculum.low_frequency",
    "plan": "commands.plan:compute_plan",
    "pretrain": "pretraining:run_pretraining",
}
"""Where the names of the API are defined: the module, and the name there if it is another."""


if not TYPE_CHECKING:  # a type checker would take this for any name

    def __getattr__(name: str) -> Any:
        """Import a name of the API."""
        if name not in _SOURCES:
            raise AttributeError(f"module 'mae_curriculum' has no attribute '{name}'")
        module, _, attribute = _SOURCES[name].partition(":")
        try:
            value = getattr(import_module(f"mae_curriculum.{module}"), attribute or name)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("mae_curriculum"):
                raise
            raise ImportError(
                f"mae_curriculum.{name} needs the package '{error.name}', which is not installed; run "
                "`pip install mae-curriculum`, or `pip install -e .` in a clone of the repository"
            ) from error
        globals()[name] = value  # found without this function from now on
        return value


def __dir__() -> list[str]:
    """List the names of the API."""
    return __all__
