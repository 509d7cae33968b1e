"""What to prune on: data by path or name, the only owner of splits and preprocessing."""

from prunus.data.augment import Augment
from prunus.data.cache import cache_folder
from prunus.data.load import load
from prunus.data.preprocess import Preprocess
from prunus.data.split import Batches, Data, Split

__all__ = ["Augment", "Batches", "Data", "Preprocess", "Split", "cache_folder", "load"]
