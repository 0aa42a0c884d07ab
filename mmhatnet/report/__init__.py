"""The report of a training or a test: one HTML file with curves, tables and images."""

from mmhatnet.report.hook import ReportHook

__all__ = ['ReportHook']
