"""Data and models of many runs, each in memory once."""

from fedjax_lora import models
from fedjax_lora.runs.config import DataConfig, RunConfig
from fedjax_lora.runs.loading import Assets, load_assets, model_key, with_first


class AssetCache:
    """Loads what the first of several runs needs and hands it to the others.

    A base is loaded once per model and task; a seed changes no more than the head. Data is loaded
    once per seed if the seed chooses the examples, else once.
    """

    def __init__(self, cache_dir: str | None = None) -> None:
        self._cache_dir = cache_dir
        self._assets: dict[tuple, Assets] = {}
        self._models: dict[tuple, models.Pretrained] = {}

    def assets(self, config: RunConfig) -> Assets:
        """What `fedjax_lora.runs.loading.load_assets` would load for the config.

        Raises:
          InputError: anything wrong with task, files or model.
        """
        first = config.lora.adapter
        which = (config.data, config.model, first, config.seed if draws(config.data) else None)
        base = (config.model, first, config.data.task, config.data.data_dir)
        if which not in self._assets:
            loaded = load_assets(config, cache_dir=self._cache_dir, model=self._models.get(base))
            self._models.setdefault(base, loaded.model)
            self._assets[which] = loaded
        found = self._assets[which]
        model = models.reinitialize(found.model, model_key(config))
        return found._replace(model=with_first(model, config))


def draws(data: DataConfig) -> bool:
    """Whether a seed chooses examples: without subsets, all seeds have the same data."""
    return bool(data.train_examples or data.validation_examples or data.test_examples)
