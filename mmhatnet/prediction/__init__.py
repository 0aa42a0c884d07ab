"""Predictions of many images and videos, as files."""

from mmhatnet.prediction.job import write_predictions

__all__ = ['write_predictions']
