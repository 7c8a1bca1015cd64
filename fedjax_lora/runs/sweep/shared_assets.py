"""Data and models that several runs share, each in memory once."""

from fedjax_lora import models
from fedjax_lora.runs.config import DataConfig, RunConfig
from fedjax_lora.runs.loading import Assets, load_assets, model_key, with_adapter_head


class AssetCache:
    """Loads the data and the model of a run, or takes those that an earlier run has loaded.

    A base is loaded once per model and task; a seed only changes the head. Data is loaded once per
    seed if the seed chooses the examples, and otherwise once.
    """

    def __init__(self, cache_dir: str | None = None) -> None:
        self._cache_dir = cache_dir
        self._assets: dict[tuple, Assets] = {}
        self._models: dict[tuple, models.Pretrained] = {}

    def assets(self, config: RunConfig) -> Assets:
        """Return what `fedjax_lora.runs.loading.load_assets` would load for the config.

        Raises:
          InputError: anything wrong with task, files or model.
        """
        adapter = config.lora.adapter
        seed = config.seed if draws_examples(config.data) else None
        data_key = (config.data, config.model, adapter, seed)
        base_key = (config.model, adapter, config.data.task, config.data.data_dir)
        if data_key not in self._assets:
            model = self._models.get(base_key)
            loaded = load_assets(config, cache_dir=self._cache_dir, model=model)
            self._models.setdefault(base_key, loaded.model)
            self._assets[data_key] = loaded
        assets = self._assets[data_key]
        model = models.reinitialize(assets.model, model_key(config))
        return assets._replace(model=with_adapter_head(model, config))


def draws_examples(data: DataConfig) -> bool:
    """Return whether the seed chooses examples: without subsets, all seeds have the same data."""
    return bool(data.train_examples or data.validation_examples or data.test_examples)
